"""Engines, runs and vectors from outside, and latency, each as the command a user types."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ENGINES, TINY, Cli, unit_vectors

from xtrrep.config import compose
from xtrrep.console import XtrrepError
from xtrrep.pipeline import plan
from xtrrep.retrieval.engines import Place, TokenEngine, engine_of, engines


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the module: the model is trained once."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("engine", ENGINES)
def test_eval_and_search_on_every_engine(cli: Cli, home: Path, engine: str) -> None:
    words = (*TINY, *ENGINES[engine])
    found = json.loads(cli("eval", *words, "--json", home=home).stdout)
    assert 0 <= found["measures"]["nDCG@10"] <= 1
    run = Path(found["run"])
    with (run.parent / "candidates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows] == list(
        dict.fromkeys(line.split()[0] for line in run.read_text().splitlines())
    )
    assert all(int(row["returned"]) > 0 for row in rows)
    if issubclass(engines.get(engine.split("/")[0]), TokenEngine):
        assert all(row["candidates"] and row["imputed_cells"] and row["missing_slots"] for row in rows)
    hits = json.loads(cli("search", "shortest path of a tree", *words, "--top", "3", "--json", home=home).stdout)
    assert 1 <= len(hits["documents"]) <= 3


def test_top_k_beyond_the_collection_is_clipped_and_said(cli: Cli, home: Path) -> None:
    found = json.loads(cli("retrieve", *TINY, "--index", "warp", "retrieve.top_k=5000", "--json", home=home).stdout)
    assert found["facts"]["top_k_clipped"] == 40


def test_a_run_goes_out_comes_in_and_is_re_ranked(cli: Cli, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "bm25 run.trec"
    cli("retrieve", *TINY, "--index", "bm25", "--out", str(path), home=home)
    own = json.loads(cli("eval", *TINY, "--index", "bm25", "--json", home=home).stdout)["measures"]
    kept = json.loads(cli("eval", *TINY, "--run", str(path), "--json", home=home).stdout)
    assert kept["measures"] == own
    assert Path(kept["run"]).read_text().split()[2] == path.read_text().split()[2]
    ranked = json.loads(cli("eval", *TINY, f"retrieve.from_run={path}", "--json", home=home).stdout)
    exact = json.loads(
        cli("eval", *TINY, "retrieve.scoring=colbert", "retrieve.k_prime=100000", "--json", home=home).stdout
    )
    best = {line.split()[0]: line.split()[2] for line in reversed(Path(exact["run"]).read_text().splitlines())}
    listed: dict[str, list[str]] = {}
    for line in Path(ranked["run"]).read_text().splitlines():
        listed.setdefault(line.split()[0], []).append(line.split()[2])
    for query, documents in listed.items():  # MaxSim's best document leads wherever BM25 found it
        assert best[query] not in documents or documents[0] == best[query]
    lines = path.read_text().splitlines()
    (tmp_path / "other.trec").write_text("\n".join(line.replace(" d", " x") for line in lines))
    done = cli("eval", *TINY, f"retrieve.from_run={tmp_path / 'other.trec'}", home=home, code=3)
    assert "which the collection does not hold" in done.stderr
    (tmp_path / "strange.trec").write_text("\n".join(f"z{line}" for line in lines))
    assert "none of the judged" in cli("eval", *TINY, "--run", str(tmp_path / "strange.trec"), home=home, code=3).stderr


def test_words_first_then_maxsim_is_that_run_re_ranked(cli: Cli, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "bm25.trec"
    cli("retrieve", *TINY, "--index", "bm25", "retrieve.top_k=12", "--out", str(path), home=home)

    def run(*words: str) -> str:
        return Path(json.loads(cli("eval", *TINY, *words, "--json", home=home).stdout)["run"]).read_text()

    def documents(text: str) -> list[list[str]]:
        return [line.split()[:3] for line in text.splitlines()]

    both = run("index=bm25", "retrieve.rerank=9", "retrieve.top_k=12")
    assert documents(both) == documents(run(f"retrieve.from_run={path}", "retrieve.rerank=9", "retrieve.top_k=12"))
    assert documents(both) != documents(path.read_text())
    found = cli(
        "search", "shortest path of a tree", *TINY, "index=bm25", "retrieve.rerank=5", "retrieve.fuse=rank", home=home
    )
    assert found.stdout.startswith(" 1. ")
    for how in ("rank", "score"):
        joined = documents(run(f"retrieve.fuse={how}", "retrieve.top_k=12"))
        alone = documents(run("retrieve.top_k=12"))
        assert joined != alone
        assert {tuple(line) for line in joined} <= {
            tuple(line) for line in (*alone, *documents(path.read_text()))
        }  # of one of the two


def test_re_ranking_by_maxsim(cli: Cli, home: Path) -> None:
    words = ("retrieve.k_prime=30", "--json")
    plain = json.loads(cli("eval", *TINY, *words, home=home).stdout)
    deep = json.loads(cli("eval", *TINY, *words, "retrieve.rerank=40", home=home).stdout)
    colbert = json.loads(cli("eval", *TINY, *words, "retrieve.scoring=colbert", home=home).stdout)
    assert Path(plain["run"]).read_text() != Path(deep["run"]).read_text()
    order = [[line.split()[:3] for line in Path(found["run"]).read_text().splitlines()] for found in (deep, colbert)]
    assert order[0] == order[1]  # all candidates re-ranked by MaxSim are ColBERT's ranking of the same candidates


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["index=warp", "retrieve.imputation=percentile"], 2, "imputation"),
        (["index=warp", "retrieve.k_prime=100"], 2, "k_prime"),
        (["index=warp", "retrieve.scoring=colbert"], 2, "scores by itself"),
        (["index=plaid", "retrieve.scoring=xtr"], 2, "scores by itself"),
        (["index=bm25", "retrieve.fuse=rank"], 2, "has none"),
        (["retrieve.from_run=x.trec", "retrieve.scoring=run", "retrieve.rerank=10"], 2, "keeps the scores"),
        (["retrieve.fuse=product"], 2, "rank"),
        (["retrieve.scoring=run"], 2, "retrieve.from_run"),
        (["retrieve.from_run=./none.trec"], 3, "none.trec"),
        (["retrieve.scoring=colbert", "retrieve.rerank=10"], 2, "already"),
        (["retrieve.top_k=0"], 2, "top_k"),
        (["index=warp", "index.nbits=3"], 2, "2 or 4"),
        (["index=plaid", "index.nbits=3"], 2, "nbits"),
        (["index=warp", "index.probe=3"], 2, "index.nprobe"),
        (["index=warp/paper"], 3, "warp/library"),
        (["index=warp", "index.memory=tape"], 2, "mmap, ram"),
        (["retrieve.scoring=colbert", "retrieve.imputation=mean"], 2, "imputes nothing"),
        (["model.source=vectors"], 2, "model.vectors"),
        (["model.source=vectors", "model.vectors=./nowhere"], 3, "nowhere"),
        (["encode.pool_factor=0.5"], 2, "pool_factor"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_runs(
    collections: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    monkeypatch.setenv("XTRREP_DATA", str(collections))
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path))
    with pytest.raises(XtrrepError) as caught:
        plan(compose([*TINY, *words]), "evaluate")
    assert says in f"{caught.value} {caught.value.hint}"
    assert caught.value.exit_code == code
    assert [path.name for path in tmp_path.iterdir()] in ([], [".verified"])  # at most the hashes of what was read


def test_no_gpu_is_one_line(cli: Cli, home: Path) -> None:
    words = ("--index", "warp", "index.nprobe=7", "index.memory=vram", "machine.device=cpu")
    done = cli("eval", *TINY, *words, code=3, home=home)
    assert "needs a GPU" in done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error") for line in done.stderr.splitlines()) == 1


def test_pooling_shrinks_the_store(cli: Cli, home: Path) -> None:
    whole = json.loads(cli("encode", *TINY, "--json", home=home).stdout)["facts"]["tokens"]
    pooled = json.loads(cli("encode", *TINY, "encode.pool_factor=2", "--json", home=home).stdout)
    assert 0.45 < pooled["facts"]["tokens"] / whole < 0.6
    store = Path(pooled["folder"])
    rows = np.load(store / "vectors" / "00000.npy").astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)
    assert (np.load(store / "tokens" / "00000.npy") == -1).all()


def write_import(folder: Path, ids: list[str], arrays: list[np.ndarray], files: int = 2) -> None:
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(ids)), files)):
        rows = [arrays[i].astype(np.float32) for i in part]
        np.save(folder / f"{number}.npy", np.concatenate(rows))
        np.save(folder / f"{number}.doclens.npy", np.array([len(r) for r in rows]))
    (folder / "ids.json").write_text(json.dumps(ids))


def test_vectors_made_elsewhere_need_no_model(cli: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = unit_vectors(rng, 40, 24, 4, 9)
    folder = tmp_path / "my vectors"
    write_import(folder / "documents", [f"d{i}" for i in range(40)], documents)
    write_import(folder / "queries", [f"q{i}" for i in range(40)], [d[:3] for d in documents], 1)
    words = ("data=beir/mini/test", "model.source=vectors", f"model.vectors={folder}")
    for engine in ("exact", "plaid", "warp"):
        found = json.loads(cli("eval", *words, "--index", engine, "--json").stdout)
        assert found["measures"]["nDCG@10"] > 0.95  # a query is the beginning of its document
    assert "no model to encode" in cli("search", "x y", *words, code=2).stderr
    documents[5] = documents[5] * 2
    spoiled = tmp_path / "spoiled"
    write_import(spoiled / "documents", [f"d{i}" for i in range(40)], documents)
    write_import(spoiled / "queries", [f"q{i}" for i in range(40)], documents, 1)
    words = ("data=beir/mini/test", "model.source=vectors", f"model.vectors={spoiled}")
    done = cli("eval", *words, code=3)
    assert "'d5' has a vector of length 2" in done.stderr
    assert "model.normalize=true" in done.stderr
    cli("encode", *words, "model.normalize=true")
    (spoiled / "documents" / "ids.json").write_text(json.dumps([f"d{i}" for i in range(39)]))
    assert "fewer than there are lengths" in cli("encode", *words, code=3).stderr
    (spoiled / "documents" / "ids.json").write_text(json.dumps([f"d{i}" for i in range(39)] + ["else"]))
    assert "'d39'" in cli("encode", *words, code=3).stderr
    np.save(spoiled / "documents" / "0.doclens.npy", np.array([1, 2]))
    assert "add up to 3" in cli("encode", *words, code=3).stderr


ASKS = """
import os, subprocess, sys, time
words = [sys.executable, "-m", "xtrrep.retrieval.latency", str(os.getpid())]
child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_measurement_ends_with_whoever_asked_for_it() -> None:
    """It would disturb the next one. Its input stays open, which this test holds: it does not end for lack of that."""
    with subprocess.Popen([sys.executable, "-c", ASKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        measuring = psutil.Process(int(asking.stdout.readline()))
        asking.kill()
        gone, _ = psutil.wait_procs([measuring], timeout=60)
        assert gone


def test_latency(cli: Cli, home: Path) -> None:
    words = (*TINY, "latency.max_queries=6", "latency.warmup=2", "--json")
    for engine, steps in (("exact", {"token search", "score"}), ("warp", {"search", "score"})):
        facts = json.loads(cli("latency", *words, "--index", engine, home=home).stdout)["facts"]
        assert facts["queries"] == 6
        assert facts["threads"] == facts["torch_threads"] == 1
        assert set(facts["steps"]) == steps
        assert 0 < facts["p50"] <= facts["p99"]
        assert facts["qps"] == pytest.approx(1 / facts["mean"])
        assert sum(facts["steps"].values()) <= 6 * facts["p99"]
    paper = json.loads(cli("latency", *words, "--index", "plaid", "latency.recipe=paper", home=home).stdout)["facts"]
    assert paper["queries"] == 20  # all of them, whatever max_queries says
    assert paper["qps"] == pytest.approx(paper["queries"] / paper["seconds"])
    assert "steps" not in paper
    table = cli("latency", *words[:-1], "--index", "warp", home=home).stdout
    assert "queries/s" in table
    for engine, own, steps in (
        ("bm25", (), {"search"}),
        ("bm25", ("retrieve.rerank=9",), {"search", "re-rank"}),
        ("warp", ("retrieve.fuse=rank",), {"search", "score", "words", "fusion"}),
    ):
        facts = json.loads(cli("latency", *words, "--index", engine, *own, home=home).stdout)["facts"]
        assert (facts["queries"], set(facts["steps"])) == (6, steps)
    both = cli("latency", *words, "--index", "bm25", "retrieve.rerank=9", "latency.recipe=paper", home=home).stdout
    assert json.loads(both)["facts"]["queries"] == 20


def test_analyze_engines(cli: Cli, home: Path) -> None:
    words = ("engines", *TINY, "analyze.engines=[exact,plaid,warp,warp/library]", "latency.max_queries=4")
    words += ("analyze.models=[xtr_k128]",)
    words += ("analyze.resamples=100", "retrieve.k_prime_xtr=200", "retrieve.k_prime_colbert=200")
    done = cli("analyze", *words, "--json", home=home)
    folder = Path(json.loads(done.stdout)["folder"])
    with (folder / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    words_first = [row for row in rows if "BM25" in row["engine"]]
    assert len(words_first) == 6  # MaxSim over two depths, and two fusions under either scoring
    assert all(float(row["queries/s"]) > 0 for row in words_first)
    rows = [row for row in rows if row not in words_first]
    assert [(row["engine"], row["scoring"]) for row in rows[:-1]] == [
        ("oracle", "ColBERT"), ("oracle", "XTR"), ("exact", "ColBERT"), ("exact", "XTR"), ("plaid", "ColBERT"),
        ("warp", "XTR"), ("warp/library", "XTR"),
    ]  # fmt: skip
    assert rows[-1]["model"] == "BM25"
    assert float(rows[0]["overlap@10 MaxSim"]) == 1
    assert float(rows[3]["overlap@100 XTR"]) == 1
    assert 0.3 < float(rows[4]["overlap@10 MaxSim"]) <= 1
    assert "threads, a process a row" in (folder / "grid.md").read_text()
    assert all(float(row["queries/s"]) > 0 and float(row["bytes/token"]) > 0 for row in rows[2:-1])
    assert rows[-1]["queries/s"] == ""
    drawn = {f"engines-beir-mini-test.{suffix}" for suffix in ("png", "svg", "pdf")}
    assert {path.name for path in folder.iterdir()} >= {"grid.md", "grid.txt", *drawn}
    assert "searches no vectors" in cli("analyze", "engines", *TINY, "analyze.engines=[bm25]", home=home, code=2).stderr


@pytest.mark.parametrize("engine", ["bm25", "warp"])
def test_a_damaged_index_is_one_line_and_no_score(cli: Cli, home: Path, engine: str) -> None:
    words = (*TINY, "--index", engine, "retrieve.top_k=17")
    folder = Path(json.loads(cli("index", *words, "--json", home=home).stdout)["folder"])
    path = max((p for p in folder.iterdir() if p.name != "manifest.json"), key=lambda p: p.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = cli("eval", *words, home=home, code=3)
    finally:
        path.write_bytes(whole)
    assert f"{path} is not as it was written" in done.stderr
    assert "hint: rm -r" in done.stderr
    assert "nDCG@10" not in done.stdout
    cli("eval", *words, home=home)


def test_two_bm25_indexes_give_one_run(tmp_path: Path) -> None:
    engine = engine_of(compose(["index=bm25"]).index)
    texts = ["the cat sat", "a dog ran", "the cat and the dog", "a cat"]
    answers = []
    for name in ("one", "two"):
        folder = tmp_path / f"made {name}"
        folder.mkdir()
        engine.build(texts, folder, Place())
        moved = folder.rename(tmp_path / f"moved {name}")
        numbers, scores = engine.load(moved, Place()).search(["cat dog", "dog"], 3)
        answers.append((numbers.tolist(), scores.tobytes()))
    assert answers[0] == answers[1]
