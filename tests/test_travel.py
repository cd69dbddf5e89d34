"""What travels: runs with their metadata, indexes, scores of a model's page, and archives that arrive in parts."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, Cli
from hub import content
from hub.server import Hub

from xtrrep.console import DataError, UsageError
from xtrrep.data import download as downloading
from xtrrep.data.download import download
from xtrrep.measure import run_file
from xtrrep.measure.run_file import META_START
from xtrrep.model.pylate_layout import rewrite
from xtrrep.pipeline import ir_metadata, pages


def test_a_run_is_exported_with_its_metadata_and_measures(cli: Cli, tmp_path: Path) -> None:
    words = ("data=beir/mini/test", "--index", "bm25", "data.measures=[nDCG@10,R@5]")
    shown = json.loads(cli("eval", *words, "--json").stdout)
    cli("export", str(tmp_path / "run"), "--of", "run", *words)
    path = tmp_path / "run" / "run.trec"
    assert path.read_text().startswith(f"{META_START}\n# tag: bm25\n")
    assert run_file.read(path) == run_file.read(Path(shown["run"]))
    told = ir_metadata.metadata_of(path)
    assert told.keys() >= {"platform", "research goal", "implementation", "method", "actor", "data"}
    assert told["data"]["test collection"]["name"] == "beir/mini/test"
    assert told["implementation"]["executable"]["cmd"].startswith("xtrrep evaluate ")
    assert told["research goal"]["evaluation"]["reported measures"] == ["nDCG@10", "R@5"]
    rows = [line.split() for line in (tmp_path / "run" / "measures.txt").read_text().splitlines()]
    assert rows[0] == ["runid", "all", "bm25"]
    means = {name: float(value) for name, query, value in rows[1:] if query == "all"}
    assert means == {name: pytest.approx(value, abs=5e-5) for name, value in shown["measures"].items()}
    assert sum(name == "nDCG@10" for name, _, _ in rows) == 1 + 20
    again = json.loads(cli("eval", "--run", str(path), *words[:1], words[3], "--json").stdout)
    assert again["measures"] == shown["measures"]


def test_a_header_that_never_ends_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("# ir_metadata.end\nq1 Q0 d1 1 2.0 tag\n")
    with pytest.raises(DataError, match=r"run.trec:1: not a TREC run line"):
        run_file.read(path)
    path.write_text(f"{META_START}\n# tag: x\nq1 Q0 d1 1 2.0 tag\n")
    with pytest.raises(DataError, match=r"its header does not end"):
        run_file.read(path)


@pytest.mark.slow
def test_an_exported_index_is_searched_where_nothing_else_was_made(cli: Cli, tmp_path: Path) -> None:
    words = (*TINY, "--index", "warp", "index.num_partitions=8")
    first = json.loads(cli("eval", *words, "--json").stdout)
    cli("export", str(tmp_path / "index"), "--of", "index", *words)
    assert "xtrrep eval" in (tmp_path / "index" / "README.md").read_text()
    assert not (tmp_path / "index" / "data").exists()
    done = cli("eval", *words, "--json", home=tmp_path / "index")
    assert {name for name in ("train", "documents", "index") if f"reuse  {name} " in done.stderr} == {
        "train",
        "documents",
        "index",
    }
    assert json.loads(done.stdout)["measures"] == first["measures"]
    refused = cli("export", str(tmp_path / "none"), "--of", "index", *TINY, code=2)
    assert "exact searches the vectors and has no index" in refused.stderr
    assert "hint: --of model" in cli("export", str(tmp_path / "none"), "--of", "all", code=2).stderr


def test_scores_on_a_models_page_are_read() -> None:
    page = f"---\nlibrary_name: PyLate\n{content.PAGE}---\n# A model\n"
    assert pages.stated(page) == [
        pages.Stated("NFCorpus", "nDCG@10", 0.3375),
        pages.Stated("NFCorpus", "Success@1", 0.42),
    ]
    for broken in (
        "",
        "# none",
        "---\nmodel-index: 3\n---\n",
        "---\n- [\n---\n",
        "---\nmodel-index: [{results: [{}]}]\n---\n",
    ):
        assert pages.stated(broken) == []


@pytest.mark.parametrize(
    ("dataset", "id", "same"),
    [
        ("NFCorpus", "beir/nfcorpus/test", True),
        ("NanoNFCorpus", "nanobeir/nfcorpus", True),
        ("NanoNFCorpus", "beir/nfcorpus/test", False),
        ("FiQA2018", "beir/fiqa/test", True),
        ("Touche2020", "beir/webis-touche2020/v2", True),
        ("SciFact", "beir/scidocs", False),
    ],
)
def test_a_pages_name_of_a_collection(dataset: str, id: str, same: bool) -> None:
    assert pages.is_same(dataset, id) == same


def test_a_model_in_pylates_layout_keeps_its_vectors(tmp_path: Path) -> None:
    """As sentence-transformers reads it; `make test-hub` loads one by PyLate, where that is installed."""
    from sentence_transformers import MultiVectorEncoder

    from xtrrep.config import compose
    from xtrrep.model.encoder import build

    build(compose(["model.layers=1", "model.n_doc=40", "model.n_query=16"]).model, "cpu").save(str(tmp_path / "plain"))
    shutil.copytree(tmp_path / "plain", tmp_path / "pylate")
    rewrite(tmp_path / "pylate")
    kinds = [module["type"] for module in json.loads((tmp_path / "pylate" / "modules.json").read_text())]
    assert kinds == ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    plain, other = (MultiVectorEncoder(str(tmp_path / name), device="cpu") for name in ("plain", "pylate"))
    text = "where is a path, or an array? " * 12
    for task in ("query", "document"):
        np.testing.assert_array_equal(plain.encode([text], task=task)[0], other.encode([text], task=task)[0])
    with pytest.raises(DataError, match="has the modules Transformer, Dense"):
        rewrite(tmp_path / "pylate")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(downloading, "WAITS", (0.0, 0.0))
    with Hub(tmp_path) as hub:
        hub.archives["file.zip"] = bytes(range(256)) * 1000
        yield hub


def test_an_archive_arrives_in_parts(host: Hub, tmp_path: Path) -> None:
    data = host.archives["file.zip"]
    path, md5, url = tmp_path / "source.zip", hashlib.md5(data).hexdigest(), f"{host.url}/file.zip"
    (tmp_path / ".partial-source.zip").write_bytes(data[:100_000])
    download(url, path, md5, len(data), "hint")
    assert path.read_bytes() == data
    path.unlink()
    (tmp_path / ".partial-source.zip").write_bytes(data)  # whole, and not yet named so
    download(url, path, md5, len(data), "hint")
    assert path.read_bytes() == data
    download(url, path, "another", len(data), "hint")  # what is there is not asked for again
    assert sum("file.zip" in line for line in host.requests) == 2


def test_other_bytes_are_never_put_in_place(host: Hub, tmp_path: Path) -> None:
    path, url = tmp_path / "source.zip", f"{host.url}/file.zip"
    with pytest.raises(DataError, match="sent other bytes than listed"):
        download(url, path, "0" * 32, None, "hint")
    host.fault("file.zip", "status", status=404)
    with pytest.raises(DataError, match="it answered with status 404"):
        download(url, path, "0" * 32, None, "hint")
    assert len(host.requests) == 2  # a page that is not there is asked for once
    assert not path.exists()
    assert not (tmp_path / ".partial-source.zip").exists()


def test_cqadupstack_is_the_mean_of_its_twelve(cli: Cli, tmp_path: Path) -> None:
    from xtrrep.config import parts_of

    ids = parts_of("beir/cqadupstack")
    assert len(ids) == 12
    for id in ids:
        content.beir_archive(tmp_path / "irds", id.removeprefix("beir/"))
    words = ("eval", "--index", "bm25", "--data", "beir/cqadupstack")
    offline = {"IR_DATASETS_HOME": str(tmp_path / "irds"), "HF_HUB_OFFLINE": "1"}
    done = json.loads(cli(*words, "--json", **offline).stdout)
    assert done["collections"].keys() == set(ids)
    for name, mean in done["measures"].items():
        assert mean == pytest.approx(sum(row[name] for row in done["collections"].values()) / 12)
    assert "--run is for one collection" in cli(*words, "--run", "x", code=2).stderr


def test_memory_is_refused_from_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import xtrrep
    from xtrrep.plan import cost, preflight

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(cost, "machine_memory", lambda: 64e9)
    monkeypatch.setattr(preflight, "require", lambda plans: None)  # the GPU and the network that it also lacks
    with pytest.raises(DataError, match="GB of memory, and there are 64 GB"):
        xtrrep.run_config("scale=paper", "data=beir/nq", "index=scann")


def test_an_unknown_kind_is_refused_before_anything_runs(tmp_path: Path) -> None:
    from xtrrep.config import compose
    from xtrrep.pipeline.export import check

    with pytest.raises(UsageError, match="--of vectors is nothing to export"):
        check(compose([]), tmp_path / "out", "vectors")
