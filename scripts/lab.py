"""Train, search and compare everything of the study at scale=lab, on one GPU, in pieces.

    XTRREP_DATA=FOLDER .venv/bin/python scripts/lab.py [--minutes 9.5] [--jobs 4] [--only WORD] [KEY=VALUE ...]

FOLDER holds squad-train44, nfcorpus, cranfield and squad-dev as BEIR folders. After `--minutes` whatever still runs is
stopped and the script exits with 75: start it again with the same words, and it goes on where it was (trainings from
their last checkpoint). It exits with 0 when all is done, with 1 where a command failed; DONE is printed beside each.

The work is lists of commands. Lists run beside each other, a list's commands one after the other; what two lists both
need is made once, and the other waits. Times are measured last, when nothing else runs. Every reproduction is accepted
(results/recorded/reproductions/NAME-lab.json), so that what comes next is compared with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

AGAIN = 75  # EX_TEMPFAIL: not a fault, call again
ROOT = Path(__file__).resolve().parent.parent
SCALE = "scale=lab"
CONTRASTIVE = {
    "I": ("xtr_k128", "colbert", "xtr_k64", "xtr_k256", "xtr_k512"),
    "II": ("colbert", "xtr_multi", "xtr_k512", "xtr_k256"),
}

Command = tuple[str, ...]


def reproduce(name: str) -> Command:
    return ("reproduce", name, SCALE, "--accept")


FIRST = [[("train", "setup=I", "config=xtr_k128", SCALE, "--dry-run")]]  # says what is missing before anything starts
TRAINING = [
    *([("train", "setup=I", f"config={config}", SCALE)] for config in CONTRASTIVE["I"]),
    *(
        [("train", "setup=II", f"config={config}", SCALE), ("train", "setup=II", f"config={config}", "stage=kd", SCALE)]
        for config in CONTRASTIVE["II"]
    ),
]
SEARCHING = [
    [reproduce("table1"), reproduce("figure1"), reproduce("table2"), reproduce("rerank")],
    [reproduce("table3"), reproduce("candidates")],
    [reproduce("figure3"), reproduce("figure4"), reproduce("anisotropy")],
]
TIMING = [[reproduce("figure2")]]
CLAIMS = [
    [("claims", "data=beir/nfcorpus/test", SCALE, "--accept")],
    [("claims", "data=pydoc/test", SCALE, "--accept")],
]


@dataclass
class Piece:
    """One call of this script: until when it may run, and what became of its commands."""

    until: float
    logs: Path
    words: tuple[str, ...]
    stopped: bool = False
    failed: list[str] = field(default_factory=list)

    def run(self, commands: list[Command]) -> None:
        """One after the other; the first that fails or is stopped ends the list."""
        for command in commands:
            said = " ".join(command)
            left = self.until - time.monotonic()
            if left <= 0:
                self.stopped = True
                return
            start = time.monotonic()
            log = self.logs / ("_".join(word.replace("/", "-").replace("=", "-") for word in command) + ".log")
            with log.open("ab") as file:
                words = [sys.executable, "-m", "xtrrep", *command, *self.words]
                process = subprocess.Popen(words, stdout=file, stderr=file, cwd=ROOT, start_new_session=True)
                try:
                    code = process.wait(left)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)  # what is complete stays; what is not is not there
                    process.wait()
                    self.stopped = True
                    print(f"stopped  {time.monotonic() - start:6.0f} s  {said}", flush=True)
                    return
            # 1 and 3 are verdicts of `reproduce` and `claims`: something differs, or something could not be run.
            fine = code == 0 or (command[0] in ("reproduce", "claims") and code in (1, 3))
            print(f"{'DONE' if fine else 'FAILED'}  {time.monotonic() - start:6.0f} s  {said}", flush=True)
            if not fine:
                self.failed.append(f"{said}: exit {code}, {log}")
                return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--jobs", type=int, default=4, help="trainings side by side")
    parser.add_argument("--logs", type=Path, default=ROOT / "artifacts" / "lab-logs")
    parser.add_argument("--only", help="only commands with this word, e.g. table1")
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    piece = Piece(time.monotonic() + 60 * options.minutes, options.logs, tuple(options.words))
    for phase, jobs in ((FIRST, 1), (TRAINING, options.jobs), (SEARCHING, 3), (CLAIMS, 1), (TIMING, 1)):
        chosen = [[c for c in commands if options.only is None or options.only in " ".join(c)] for commands in phase]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(piece.run, chosen))
        if piece.stopped or piece.failed:
            break
    for line in piece.failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if piece.failed else AGAIN if piece.stopped else 0


if __name__ == "__main__":
    sys.exit(main())
