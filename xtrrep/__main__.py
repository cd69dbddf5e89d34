"""`python -m xtrrep`."""

from xtrrep.cli import main

main()
