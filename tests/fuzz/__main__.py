"""`python -m fuzz [--seed N] [--share X] [--only STAGE] [--broken NAME] [--cover SECONDS]`"""

from __future__ import annotations

import argparse
import sys
import time

from fuzz import readers
from fuzz.broken import BROKEN
from fuzz.harness import FAILED, run_apart, table


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m fuzz", description="Bad data at every reader, and a table of it.")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--share", type=float, default=1.0, help="of the inputs of a full run")
    words.add_argument("--only", action="append", default=[], metavar="STAGE")
    words.add_argument("--broken", choices=sorted(BROKEN), help="break a reader on purpose: this must fail")
    words.add_argument("--cover", type=int, metavar="SECONDS", help="then follow coverage so long at each file reader")
    asked = words.parse_args()
    tallies = []
    with BROKEN[asked.broken]() if asked.broken else BROKEN["nothing"]():
        for reader in readers():
            if asked.only and reader.stage not in asked.only:
                continue
            start = time.monotonic()
            tally = run_apart(reader, max(1, round(reader.inputs * asked.share)), asked.seed)
            tallies.append(tally)
            print(f"  {reader.stage}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(tallies))
    for tally in tallies:
        if tally.failure is not None:
            print(f"\n{tally.stage} failed:")
            print(tally.failure)
    failed = any(tally.total(FAILED) or tally.failure for tally in tallies)
    if asked.cover:
        from fuzz.cover import cover

        failed = cover(asked.cover, asked.only) or failed
    return int(failed)


sys.exit(main())
