"""Bad data at every reader: generated inputs, each with an independent idea of what should come out.

`python -m fuzz` (with tests/ on the path; `make test-fuzz`) runs all of it and prints what became of every kind of
input. An input survives when it is read as a naive reader reads it, or refused by a DataError or UsageError that names
file and line. Another exception, a wrong value, a wrong line, a hang, or a flood of warnings fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuzz.harness import Reader


def readers() -> list[Reader]:
    """Every reader, in the order of the pipeline."""
    from fuzz import configs, encoding, folders, imported, runs, training

    return [*folders.READERS, *training.READERS, *runs.READERS, *imported.READERS, *configs.READERS, *encoding.READERS]
