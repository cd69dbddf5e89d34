"""What a reader under test is, how many inputs of each kind it survived, and the table of that."""

from __future__ import annotations

import contextlib
import io
import mmap
import multiprocessing
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

from xtrrep.console import LONGEST, XtrrepError

ACCEPTED, REFUSED, FAILED = "accepted", "refused", "failed"
SECONDS = 30  # an input that takes longer hangs
CHATTER = 4000  # characters on stderr, progress bars included, that one input may cause
WARNINGS = 3


class Case(Protocol):
    """A generated input; `kind` says in a word or two what is odd about it."""

    kind: str


@dataclass(frozen=True)
class Reader:
    """`check(case, empty folder)` is True where the input was rightly accepted and False where it was rightly refused;
    anything else raises."""

    stage: str
    inputs: int  # of the full run
    cases: SearchStrategy[Any]
    check: Callable[[Any, Path], bool]


@dataclass
class Tally:
    """Inputs by kind and outcome, and the first failure with the smallest input that shows it."""

    stage: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failure: str | None = None

    def add(self, kind: str, outcome: str) -> None:
        self.counts.setdefault(kind, Counter())[outcome] += 1

    def total(self, *outcomes: str) -> int:
        return sum(count[outcome] for count in self.counts.values() for outcome in outcomes)


@dataclass(frozen=True)
class Fault(Exception):
    """A reference reader's refusal: which file is at fault, and which line where the format has lines."""

    file: str
    line: int | None = None

    __hash__ = Exception.__hash__


def outcome_of(call: Callable[[], Any]) -> tuple[Any, XtrrepError | None]:
    """What a call returns, or the error for people that it raises; any other exception goes through."""
    try:
        return call(), None
    except XtrrepError as error:
        return None, error


def check_message(error: XtrrepError, where: str | None = None, *, several: bool = False) -> None:
    """One short printable line that names the place; or `several` such lines."""
    if several and "\n" in str(error):
        for line in str(error).split("\n"):
            assert where is None or where in line or line.endswith(" more faults"), f"{line!r} does not name {where}"
            check_message(type(error)(line, hint=error.hint))
        return
    text = str(error)
    assert text.strip(), "an empty message"
    assert len(text) <= 10 * LONGEST, f"a message of {len(text)} characters"
    assert text.isprintable(), f"a message that is not one printable line: {text!r}"
    assert error.hint.strip()
    assert error.hint.isprintable(), f"hint {error.hint!r}"
    assert where is None or where in text, f"{text!r} does not name {where}"


def agree(got: Any, error: XtrrepError | None, expected: Any, folder: Path) -> bool:
    """Compare with a reference's answer, a value or a Fault, as `Reader.check` answers."""
    if isinstance(expected, Fault):
        assert error is not None, f"accepted, but {expected.file}:{expected.line} is at fault"
        place = str(folder / expected.file) if expected.file else None
        check_message(error, place if expected.line is None else f"{place}:{expected.line}:")
        return False
    if error is not None:
        raise AssertionError(f"refused what is fine: {error}") from error
    assert got == expected, f"read {got!r}\nwanted {expected!r}"[:4000]
    return True


def expectation(reference: Callable[[], Any]) -> Any:
    """What a reference reader returns, or its Fault."""
    try:
        return reference()
    except Fault as fault:
        return fault


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """No hang, no flood on stderr, no flood of warnings."""

    def hang(signum: int, frame: Any) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    said = io.StringIO()
    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(said.getvalue()) <= CHATTER, f"{len(said.getvalue())} characters on stderr: {said.getvalue()[:300]!r}"
    assert len(caught) <= WARNINGS, f"{len(caught)} warnings, the first: {caught[0].message}"


def attempt(reader: Reader, case: Any) -> bool:
    """Check one input in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, watched():
        return reader.check(case, Path(folder))


def run(reader: Reader, inputs: int, seed: int, *, shrink: bool = True) -> Tally:
    """Check so many inputs; after the first failure the rest are left, and with `shrink` the smallest input that fails
    is looked for."""
    tally = Tally(reader.stage)

    @hypothesis.seed(seed)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,  # `watched` has its own
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
        print_blob=False,
    )
    @hypothesis.given(reader.cases)
    def one(case: Any) -> None:
        try:
            accepted = attempt(reader, case)
        except BaseException:
            if not tally.total(FAILED):
                tally.add(case.kind, FAILED)
            raise
        if not tally.total(FAILED):
            tally.add(case.kind, ACCEPTED if accepted else REFUSED)

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            one()
    except Exception as error:
        tally.failure = "".join(traceback.format_exception(error))[-6000:]
        if not tally.total(FAILED):
            tally.add("no input could be made", FAILED)
    return tally


def run_apart(reader: Reader, inputs: int, seed: int) -> Tally:
    """As `run`, in a process of its own, so that one killed by native code is a failure of its last input."""
    last = mmap.mmap(-1, 4096)

    def noted(case: Any, folder: Path) -> bool:
        last.seek(0)
        last.write(repr(case).encode("utf-8", "backslashreplace")[:4000].ljust(4000))
        return reader.check(case, folder)

    def work() -> None:
        send.send(run(replace(reader, check=noted), inputs, seed))

    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=work)
    child.start()
    send.close()
    try:
        tally: Tally = receive.recv()
    except EOFError:
        child.join()
        said = last[:4000].decode(errors="replace").strip()
        tally = Tally(reader.stage, failure=f"the process died ({child.exitcode}) at or before the input {said}\n")
        tally.add("the process died", FAILED)
    child.join()
    return tally


def table(tallies: list[Tally]) -> str:
    """Inputs by stage and kind, and how many survived."""
    rows = [("stage", "kind", "tried", ACCEPTED, REFUSED, FAILED, "survived")]
    totals: Counter[str] = Counter()
    for tally in tallies:
        for kind, count in sorted(tally.counts.items()):
            rows.append((tally.stage, kind, *_cells(count)))
            totals += count
    rows.append(("all", f"{len(rows) - 1} kinds", *_cells(totals)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _cells(count: Counter[str]) -> tuple[str, ...]:
    tried, survived = sum(count.values()), count[ACCEPTED] + count[REFUSED]
    share = 100 * survived / tried if tried else 0.0
    return (*(f"{n:,}" for n in (tried, count[ACCEPTED], count[REFUSED], count[FAILED])), f"{share:.0f} %")
