"""`python -m hub faults|journeys [PART]`: the table of faults, or the study's commands; all rows, or those with PART.

Exit 1 where a row is not as it should be.
"""

import os
import sys
from pathlib import Path

from hub import journeys, table

KEEP = os.environ.get("XTRREP_JOURNEYS")  # a folder to keep, and to go on in
MAINS = {"faults": table.main, "journeys": lambda part: journeys.main(part, Path(KEEP) if KEEP else None)}

if len(sys.argv) < 2 or sys.argv[1] not in MAINS:
    sys.exit("usage: python -m hub faults|journeys [PART]")
sys.exit(bool(MAINS[sys.argv[1]](" ".join(sys.argv[2:]))))
