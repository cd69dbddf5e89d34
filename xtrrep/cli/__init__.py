"""The command line: one short function a verb. Heavy imports stay inside, so that --help answers at once."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import typer
from typer.exceptions import TyperException

from xtrrep.cli import explore, stages, studies, upkeep  # noqa: F401  # their verbs, in the order of --help
from xtrrep.cli.options import app
from xtrrep.console import OK, USAGE, DataError, UsageError, XtrrepError, fail, hush, machine_error, say
from xtrrep.train import distributed

# How long torch's threads spin at a barrier before they sleep, in turns of libgomp's loop (1,000 take 20 to 60 us).
# libgomp's own 300,000 take up to 14 ms, so beside another process each barrier waits out a time slice. 1,000 is what
# libgomp itself takes where it has more threads than processors, and about as long as waking a thread takes.
SPINS = "1000"
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # a user who sets either has decided

INTERRUPTED = 130  # what a shell expects after Ctrl-C


def main() -> None:
    """Entry point: every foreseen error becomes one line, a hint and the documented exit code."""
    _share_processors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without "—" still gets its table
    if distributed.asked() > 1:
        signal.signal(signal.SIGTERM, _ended)
        if distributed.number() > 0:
            hush()
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    sys.exit(_run(sys.argv[1:]))


def _share_processors() -> None:
    """Let idle threads sleep soon. libgomp reads this when it is loaded, so before torch is imported."""
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def _ended(signum: int, frame: Any) -> None:
    """torchrun ends all processes when one of them does."""
    say("error: ended from outside, as torchrun does when another process of the training failed or was killed")
    say("hint: the same command continues from the last checkpoint")
    os._exit(128 + signum)


def _run(words: list[str]) -> int:
    if distributed.asked() > 1 and words[:1] != ["train"]:
        return fail(
            UsageError("only `xtrrep train` runs in several processes", hint="the same command without torchrun")
        )
    try:
        code = app(words, standalone_mode=False)
    except XtrrepError as error:
        return fail(error)
    except TyperException as error:
        return _fail_usage(error)
    except typer.Abort:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if explained := machine_error(error):
            return fail(explained)
        if not isinstance(error, OSError):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return fail(DataError(f"{error.strerror or error}{where}", hint="`xtrrep doctor` checks disk and permissions"))
    if code == INTERRUPTED:
        say("interrupted: the same command continues where it can")
    return code if isinstance(code, int) else OK


def _fail_usage(error: Any) -> int:
    if not sys.argv[1:] or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return USAGE
    path = error.ctx.command_path if getattr(error, "ctx", None) else "xtrrep"
    return fail(UsageError(" ".join(error.format_message().split()), hint=f"{path} --help"))
