from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from faults import stages, syscalls
from faults.matrix import Bench, Plan, matrix, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--injected", type=int, default=12, help="calls to kill each case at")
    parser.add_argument("--by-time", type=int, default=1, help="moments to kill each case at")
    parser.add_argument("--full", type=int, default=2, help="calls from which on the disk is full")
    parser.add_argument("--interrupted", type=int, default=1, help="calls at which Ctrl-C comes")
    chosen = parser.parse_args()
    stages.warm(stages.WORDS + stages.VECTORS)
    reason = syscalls.why_not()
    if reason is not None:
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 3
    work = Path(tempfile.mkdtemp(prefix="faults "))
    trials = []
    stopped = False
    try:
        made = syscalls.run(lambda: stages.prepare(work), work)
        if made.code:
            raise RuntimeError(made.output)
        cases = stages.cases(work / "backbone")
        wanted = {case.name for case in cases if case.name.startswith(chosen.only)}
        needed = set(wanted)
        for case in reversed(cases):
            if case.name in needed and case.after:
                needed.add(case.after)
        plan = Plan(chosen.injected, chosen.by_time, chosen.full, chosen.interrupted)
        plans = {case: plan if case.name in wanted else Plan() for case in cases if case.name in needed}
        for trial in matrix(Bench(work), plans):
            trials.append(trial)
    except KeyboardInterrupt:
        print("interrupted: this is what was tried", file=sys.stderr)
        stopped = True
    finally:
        shutil.rmtree(work)
    print(table(trials))
    return int(stopped or not trials or any(trial.faults for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
