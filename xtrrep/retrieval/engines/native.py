"""Calling compiled engines: their panics and their log lines."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from xtrrep.console import CONTINUES, DataError, machine_error

# An engine that cannot write a file may only say that it cannot read it.
UNSURE = f"`xtrrep doctor` checks disk and libraries; {CONTINUES}"


@contextmanager
def log_aside() -> Iterator[None]:
    """Keep a library's own lines off stderr, Python logging and native code alike; shown if the work fails."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            # xtr-warp-rs configures the root logger when imported: undo that.
            root.handlers[:], root.level = handlers, level


@contextmanager
def panics(engine: str, doing: str, hint: str = UNSURE) -> Iterator[None]:
    """Turn an engine's failure into a DataError with its message: a Rust panic is only a BaseException.

    Where it is the machine's, a full disk say, the error is what `console.machine_error` says.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except DataError:
        raise
    except BaseException as error:
        if explained := machine_error(error):
            raise explained from error
        lines = str(error).strip().splitlines()
        message = lines[0] if lines else type(error).__name__
        raise DataError(f"engine {engine} failed {doing}: {message}", hint=hint) from error
