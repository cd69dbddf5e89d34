"""Real commands in fresh processes: the main job small, and every refusal with its exit code."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from conftest import TINY, Cli, write_collection

from xtrrep.measure import run_file
from xtrrep.retrieval.engines import engines

ROOT = Path(__file__).parents[1]


def test_help_is_light() -> None:
    """No torch, pandas or transformers behind --help, of the whole and of a verb."""
    code = (
        "import sys\nfrom xtrrep.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'torch', 'pandas', 'transformers', 'numpy', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for words in (["--help"], ["eval", "--help"], ["search", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout


def test_help_shows_examples_and_exit_codes(cli: Cli) -> None:
    assert "3 data" in " ".join(cli("--help").stdout.split())
    for verb in (
        "train",
        "encode",
        "index",
        "retrieve",
        "evaluate",
        "analyze",
        "claims",
        "search",
        "show",
        "verify",
        "gc",
    ):
        assert "xtrrep " in cli(verb, "--help").stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home that the tests of the main job share, so that training runs once."""
    return tmp_path_factory.mktemp("home with spaces ü")


def test_the_main_job(cli: Cli, home: Path) -> None:
    """train, then eval: the second re-uses, the third run does nothing, and the run file reads back."""
    first = cli("train", "config=xtr_k128", *TINY, home=home)
    assert first.stderr.count("run    ") == 3  # train_data, triples, train
    folder = Path(first.stdout.splitlines()[0])
    assert (folder / "model" / "model.safetensors").exists()
    assert (folder / "loss.png").stat().st_size > 5000
    assert "<svg" in (folder / "loss.svg").read_text()
    second = json.loads(cli("eval", *TINY, "--json", home=home).stdout)
    assert len(second["reused"]) == 3
    assert len(second["ran"]) == 6
    assert set(second["measures"]) == {"nDCG@10", "R@100", "RR@10", "Success@5"}
    assert all(0 <= value <= 1 for value in second["measures"].values())
    run = run_file.read(Path(second["run"]))
    assert len(run) == 20
    third = cli("eval", *TINY, home=home)
    assert "0 stages run, 9 re-used" in third.stderr
    assert f"{second['measures']['nDCG@10']:.4f}" in third.stdout
    plan = json.loads(cli("eval", *TINY, "--dry-run", "--json", home=home).stdout)
    assert (plan["run"], plan["reuse"]) == (0, 9)


def test_a_killed_training_continues_with_the_same_command(tmp_path: Path, collections: Path, cli: Cli) -> None:
    """SIGKILL after the first checkpoint: nothing looks complete, and the same words finish the run."""
    words = ["train", *TINY, "train.steps=60", "train.checkpoint_every=2"]
    home = tmp_path / "home"
    env = os.environ | {"XTRREP_HOME": str(home), "XTRREP_DATA": str(collections)}
    child = subprocess.Popen([sys.executable, "-m", "xtrrep", *words], env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(home.glob("train/.partial-*/checkpoints/checkpoint-*/xtrrep_state.json")):
        assert child.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not list(home.glob("train/*/manifest.json"))
    done = cli(*words)
    assert "resuming from step " in done.stderr
    folder = Path(done.stdout.splitlines()[0])
    steps = [int(row.split(",")[0]) for row in (folder / "loss.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, 61))
    assert not list(home.glob("train/.partial-*"))


def test_eval_on_scann_and_bm25(cli: Cli, home: Path) -> None:
    leaves = ("index.num_leaves=10", "index.num_leaves_to_search=10")
    scann = json.loads(cli("eval", *TINY, "--index", "scann", *leaves, "--json", home=home).stdout)
    exact = json.loads(cli("eval", *TINY, "--index", "exact", "--json", home=home).stdout)
    assert scann["measures"]["nDCG@10"] == pytest.approx(exact["measures"]["nDCG@10"], abs=0.05)
    bm25 = json.loads(cli("eval", "data=beir/mini/test", "--index", "bm25", "--json", home=home).stdout)
    assert bm25["measures"]["nDCG@10"] > 0.9  # every query holds its document's own words


def test_slots_that_cannot_be_filled_are_said(cli: Cli, home: Path) -> None:
    words = ("--index", "scann", "index.num_leaves=10", "index.num_leaves_to_search=2", "retrieve.k_prime=900")
    done = cli("eval", *TINY, *words, home=home)
    assert "slots empty" in done.stderr
    folder = next((home / "results" / "runs" / "retrieve").glob("scann--*--xtr-900-*"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["facts"]["missing_slots"] > 0


def test_search(cli: Cli, home: Path) -> None:
    done = cli("search", "shortest path between nodes w8a w8b", *TINY, "--top", "3", home=home)
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].startswith(" 1. ")
    found = json.loads(cli("search", "quantile median w6a", *TINY, "--index", "bm25", "--json", home=home).stdout)
    assert found["documents"][0]["id"] == "d6"
    assert "w6a" in found["documents"][0]["text"]


def test_analyze_leaves_table_and_figure(cli: Cli, home: Path) -> None:
    words = ("analyze.models=[colbert,xtr_k128]", "analyze.k_primes=[5,200]", "analyze.resamples=200")
    done = cli("analyze", *TINY, *words, home=home)
    (folder,) = (home / "results" / "runs" / "experiment").glob("k_prime-*")
    rows = (folder / "grid.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 2 * 2 + 1  # untrained, colbert, xtr_k128; two scorings; two k'; BM25
    assert "untrained" in done.stdout
    assert "BM25" in done.stdout
    assert (folder / "k_prime-beir-mini-test.png").stat().st_size > 10000
    assert "</svg>" in (folder / "k_prime-beir-mini-test.svg").read_text()
    again = cli("analyze", *TINY, *words, home=home)
    assert "\nrun " not in again.stderr
    assert again.stdout == done.stdout
    json.loads(cli("analyze", "k_prime", *TINY, *words, "--only", "MRR@10", "--json", home=home).stdout)
    plan = json.loads(cli("analyze", *TINY, *words, "--dry-run", "--json", home=home).stdout)
    assert plan["run"] == 0
    assert all(step["action"] == "reuse" for step in plan["steps"])


def test_ls_lists_parts_and_artifacts(cli: Cli, home: Path) -> None:
    listing = json.loads(cli("ls", "--json", home=home).stdout)
    assert [e["name"] for e in listing["engine"]] == sorted(engines.entries())
    assert {"name": "xtr_k128"} in listing["config"]
    assert {"name": "beir/nfcorpus/test"} in listing["data"]
    assert any("/train/" in e["name"] for e in listing["artifact"])
    assert "k_prime" in cli("ls", home=home).stdout


def test_show_and_doctor(cli: Cli) -> None:
    shown = json.loads(cli("show", "config=colbert", "scale=paper", "--json").stdout)
    assert shown["config"]["train.steps"] == 50000
    assert shown["origins"]["train.scorer"] == "configs/config/colbert.yaml"
    assert len(shown["fingerprints"]) >= 7
    rows = json.loads(cli("doctor", "--json", HF_HUB_OFFLINE="1").stdout)
    findings = {row["what"]: row for row in rows}
    assert findings["torch"]["fine"]
    assert findings["engine scann"]["fine"]
    assert findings["model hub"]["fine"] is None
    assert "offline" in findings["model hub"]["finding"]
    broken = cli("doctor", code=0, XTRREP_DATA="")
    assert "ok   python" in broken.stdout


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "GOMP_SPINCOUNT = '1000'"),
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        ({"OMP_WAIT_POLICY": "active"}, "OMP_WAIT_POLICY = 'ACTIVE'"),
    ],
)
def test_threads_sleep_soon_unless_the_user_says_otherwise(environment: dict[str, str], says: str) -> None:
    """What libgomp found in its environment when torch loaded it, by its own account."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-m", "xtrrep", "doctor"],
        env=kept | {"OMP_DISPLAY_ENV": "verbose", "HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert says in done.stderr
    assert "GOMP_SPINCOUNT = '1000'" not in done.stderr or not environment


def test_doctor_fails_with_a_fix(cli: Cli) -> None:
    done = cli("doctor", code=3, XTRREP_DATA="/nowhere/at/all", HF_HUB_OFFLINE="1")
    line = next(line for line in done.stdout.splitlines() if "XTRREP_DATA" in line)
    assert line.startswith("FAIL")
    assert "hint:" in line


def test_paper_scale_stops_at_once_with_the_demo_command(cli: Cli) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = cli("train", "config=xtr_k128", "scale=paper", code=3, HF_HUB_OFFLINE="1")
    assert "no GPU" in done.stderr
    assert "BAAI/bge-small-en-v1.5" in done.stderr
    assert "xtrrep train config=xtr_k128 scale=demo" in done.stderr
    plan = cli("eval", "scale=paper", "--dry-run", HF_HUB_OFFLINE="1").stdout
    assert "50,000 steps of 196" in plan
    assert "133,440,000" in plan  # the backbone, in bytes
    assert "not calibrated" in plan
    assert "missing: no GPU" in plan


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["eval", "--index", "wrap"], 3, "no engine named 'wrap'"),
        (["eval", "train.stps=3"], 2, "unknown key 'train.stps'"),
        (["eval", "data=beir/nope/test"], 3, "no collection named 'beir/nope/test'"),
        (["eval", "data=beir/mini/dev"], 3, "dev"),
        (["eval", "data.path=/nowhere"], 3, "/nowhere"),
        (["eval", "+train.steps=3"], 2, "refused"),
        (["eval", "data.measures=[nDCGG@10]"], 2, "nDCGG@10"),
        (["eval", "retrieve.imputation=powerlaw"], 3, "powerlaw"),
        (["eval", "model.backbone=./nowhere"], 3, "./nowhere"),
        (["analyze", "analyze.name=figure9"], 3, "figure9"),
        (["eval", "--nonsense"], 2, "--nonsense"),
        (["evl"], 2, "evl"),
        (["search", "x", "--top", "0"], 2, "--top"),
        (["eval", "machine.device=foo"], 2, "foo"),
        (["eval", "data.measures=[]"], 2, "no measure"),
        (["eval", "--index", "scann", "index.num_leaves_to_search=0"], 2, "num_leaves_to_search"),
        (["analyze", "index=bm25"], 2, "searches vectors"),
        (["analyze", "analyze.measure=P@7"], 2, "P@7"),
        (["eval", "train.triples=./none.jsonl", "train.data=null"], 3, "none.jsonl"),
        (["search", "  "], 2, "no words"),
        (["retrieve", "--index", "bm25", "--out", "/nowhere/run.trec"], 3, "no folder /nowhere"),
        (["eval", "--index", "bm25", "retrieve.scoring=xtr"], 2, "bm25 scores words"),
        (["reproduce", "table9"], 2, "no reproduction named 'table9'"),
        (["analyze", "nowhere.yaml"], 2, "nowhere.yaml cannot be read"),
        (["analyze", "--only", "pydoc"], 2, "k_prime has no column 'pydoc'"),
        (["analyze", "geometry", "--only", "pydoc"], 2, "geometry reads vectors"),
        (["analyze", "k_prim"], 3, "did you mean k_prime"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(cli: Cli, tmp_path: Path, words: list[str], code: int, says: str) -> None:
    done = cli(*words, code=code)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1
    assert "hint:" in done.stderr
    left = [p for p in (tmp_path / "home").rglob("*") if p.is_file()] if (tmp_path / "home").exists() else []
    assert not left, "a refused command left files behind"


def test_a_damaged_input_is_not_built_upon(cli: Cli, home: Path, tmp_path: Path) -> None:
    """Triples cut short after they were made: training refuses them, and no new model appears."""
    copy = tmp_path / "copy"
    cli("train", *TINY, home=home)
    shutil.copytree(home, copy)
    triples = next((copy / "triples").glob("[!.]*/triples.jsonl"))
    triples.write_text("".join(triples.read_text().splitlines(keepends=True)[:6]))
    done = cli("train", *TINY, "train.learning_rate=1e-4", home=copy, code=3)
    assert "triples.jsonl has" in done.stderr
    assert len(list((copy / "train").glob("[!.]*"))) == len(list((home / "train").glob("[!.]*")))


def test_a_folder_of_triples_is_identified_by_content(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "triples, mine"
    folder.mkdir()
    row = json.dumps({"query": "a node", "positive": "the node of a graph", "negative": "a file"}) + "\n"
    (folder / "one.jsonl").write_text(row * 4)
    words = ("show", "--json", "train.data=null", f"train.triples={folder}")
    before = json.loads(cli(*words).stdout)["fingerprints"]["train"]
    assert json.loads(cli(*words).stdout)["fingerprints"]["train"] == before
    (folder / "two.jsonl").write_text(row)
    assert json.loads(cli(*words).stdout)["fingerprints"]["train"] != before
    missing = cli("train", "train.data=null", "train.triples=./none.jsonl", code=3)
    assert "none.jsonl does not exist" in missing.stderr


def test_own_folders_keep_their_names_and_splits(cli: Cli, home: Path, tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "mine, too", 8)
    done = cli("eval", f"data.path={folder}", "--index", "bm25", home=home)
    assert "mine, too/test" in done.stdout
    for words in (["data=beir/mini/test", f"data.path={folder}"], ["data=beir/mini/test", "data.split=train"]):
        assert "cannot change the named collection" in cli("eval", *words, code=2).stderr


def test_a_home_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = cli("eval", *TINY, "model.source=untrained", home=blocked, code=3)
    assert "Traceback" not in done.stderr
    assert "hint:" in done.stderr


def test_nothing_found_counts_zero(cli: Cli, tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "none", 6)
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row | {"text": "zzzz"}) + "\n" for row in rows))
    done = json.loads(cli("eval", f"data.path={folder}", "--index", "bm25", "--json").stdout)
    assert set(done["measures"].values()) == {0.0}


def corrupted(tmp_path: Path, file: str, text: str) -> Path:
    folder = write_collection(tmp_path / "bad", 8)
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b", "text": \n', "corpus.jsonl:2"),
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n', "'a'"),
        ("corpus.jsonl", "", "empty"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tmany\n", "test.tsv:2"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n", "relevant"),
        ("corpus.jsonl", '{"_id": "a b", "text": "x"}\n', "'a b'"),
    ],
)
def test_bad_collections(cli: Cli, tmp_path: Path, file: str, text: str, says: str) -> None:
    folder = corrupted(tmp_path, file, text)
    words = [w for w in TINY if not w.startswith("data=")]
    done = cli("eval", *words, f"data.path={folder}", "model.source=untrained", code=3)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "home").rglob("manifest.json"))


def test_broken_artifacts_are_refused(cli: Cli, home: Path, tmp_path: Path) -> None:
    """A store that lost a shard, and an index put under another model's name."""
    cli("eval", *TINY, home=home)
    cli("eval", *TINY, "config=colbert", home=home)
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    index = sorted((copy / "index").glob("exact--I-*"))
    colbert = next(p for p in index if "colbert" in p.name)
    xtr = next(p for p in index if "xtr_k128" in p.name)
    shutil.rmtree(xtr)
    shutil.copytree(colbert, xtr)
    done = cli("eval", *TINY, "retrieve.k_prime=33", home=copy, code=3)
    assert "holds another artifact" in done.stderr
    assert "hint: rm -r" in done.stderr
    shard = next((copy / "documents").glob("I-colbert*")) / "vectors" / "00000.npy"
    shard.unlink()
    done = cli("eval", *TINY, "config=colbert", "retrieve.k_prime=33", home=copy, code=3)
    assert "00000.npy is missing" in done.stderr


def test_the_wheel_finds_its_configs(tmp_path: Path, collections: Path) -> None:
    """Built, unpacked elsewhere and run in an empty folder, with nothing of the checkout in sight."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
        names = wheel.namelist()
    assert "xtrrep/configs/root.yaml" in names
    assert not any("shared" in name or "tests/" in name for name in names)
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "XTRREP_HOME"}
    env |= {"PYTHONPATH": str(site), "XTRREP_DATA": str(collections)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "xtrrep", *words], capture_output=True, text=True, env=env, cwd=empty
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "xtr_k128" in run("ls")
    assert "nDCG@10" in run("eval", *TINY, "model.source=untrained")
    assert sorted(path.name for path in empty.iterdir()) == ["artifacts", "results"]
