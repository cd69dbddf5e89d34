"""Where configs, artifacts and results lie."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def checkout() -> Path | None:
    """The source tree this package runs from, or None when it is installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "configs" / "root.yaml").exists() and (root / "pyproject.toml").exists() else None


def config_dir() -> Path:
    """`configs/` of the source tree, or the copy inside the installed wheel."""
    root = checkout()
    return root / "configs" if root else Path(__file__).resolve().parents[1] / "configs"


def artifacts_root() -> Path:
    """`$XTRREP_HOME`, or `artifacts/` in the source tree (in the current folder when installed)."""
    home = os.environ.get("XTRREP_HOME")
    return Path(home).expanduser().resolve() if home else (checkout() or Path.cwd()) / "artifacts"


def results_root() -> Path:
    """`results/runs/` in the source tree, in `$XTRREP_HOME` where that is set, else in the current folder."""
    home = os.environ.get("XTRREP_HOME")
    return (Path(home).expanduser().resolve() if home else checkout() or Path.cwd()) / "results" / "runs"


def recorded_root() -> Path | None:
    """`results/recorded/` of the source tree; None where installed without one."""
    root = checkout()
    return root / "results" / "recorded" if root else None
