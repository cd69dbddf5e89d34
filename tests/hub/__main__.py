"""`python -m hub [PART]`: the fault table, or the rows with PART in their `fault/kind`. Exit 1 where one is unsound."""

import sys

from hub.table import main

sys.exit(bool(main(" ".join(sys.argv[1:]))))
