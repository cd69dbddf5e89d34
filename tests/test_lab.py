"""scripts/lab.py: the order of its commands, what stops it, and that it goes on."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from xtrrep.config import compose

SCRIPT = Path(__file__).parent.parent / "scripts" / "lab.py"


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lab", module)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def test_every_training_command_composes_and_every_reproduction_is_there(lab: ModuleType) -> None:
    trained = {" ".join(command) for commands in lab.TRAINING for command in commands}
    for command in (command for commands in lab.TRAINING for command in commands):
        cfg = compose(command[1:])
        assert (cfg.scale, cfg.train.batch_size, cfg.train.data) == ("lab", 196, "lab/train")
    assert len(trained) == 5 + 2 * 4
    made = [command[1] for commands in (*lab.SEARCHING, *lab.TIMING) for command in commands]
    folder = SCRIPT.parent.parent / "configs" / "reproductions"
    assert sorted(made) == sorted(path.stem for path in folder.glob("*.yaml"))


def test_a_list_ends_where_a_command_fails_and_says_where_to_look(lab: ModuleType, tmp_path: Path) -> None:
    piece = lab.Piece(time.monotonic() + 60, tmp_path, ())
    piece.run([("show", "nothing=1"), ("show", "setup=I")])
    (line,) = piece.failed
    assert line.startswith("show nothing=1: exit 2, ")
    assert "nothing" in Path(line.rpartition(", ")[2]).read_text()
    assert len(list(tmp_path.iterdir())) == 1


def test_time_that_is_up_asks_to_be_called_again(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--minutes", "0", "--logs", str(tmp_path)]
    assert subprocess.run(words).returncode == 75
    assert list(tmp_path.iterdir()) == []
