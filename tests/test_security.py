"""What comes from outside is data: nothing in it is run, and nothing it is called leads anywhere."""

import ast
import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import unit_vectors, write_store

from xtrrep import artifacts, cli, config
from xtrrep.console import DataError
from xtrrep.retrieval.engines import Place, TextEngine, engine_of
from xtrrep.retrieval.engines.files import build_index, index_spec, open_index

ROOT = Path(__file__).parents[1]

# Calls that run, or may run, what they read; by the end of their dotted name.
FORBIDDEN = (
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cPickle.load", "dill.load", "joblib.load", "marshal.loads",
    "shelve.open", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system", "os.popen", "extractall",
    "unpack_archive", "read_pickle", "to_pickle", "pickle.dump", "pickle.dumps",
)  # fmt: skip


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str) -> list[str]:
    """Calls of a source text that could run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "joblib", "marshal", "shelve"):
            names = {alias.name for alias in node.names} - {"UnpicklingError"}
            found += [f"{node.lineno}: from {node.module} import {name}" for name in sorted(names)]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {keyword.arg: getattr(keyword.value, "value", "?") for keyword in node.keywords}
        if name in FORBIDDEN or name.endswith(tuple(f".{end}" for end in FORBIDDEN if end not in ("eval", "exec"))):
            found.append(f"{node.lineno}: {name}")
        if name == "torch.load" and given.get("weights_only") is not True:
            found.append(f"{node.lineno}: torch.load without weights_only")
        for key in ("allow_pickle", "trust_remote_code", "shell"):
            if key in given and given[key] is not False:
                found.append(f"{node.lineno}: {key}={given[key]}")
    return found


@pytest.mark.parametrize("folder", ["xtrrep", "scripts"])
def test_no_source_runs_what_it_reads(folder: str) -> None:
    sources = sorted((ROOT / folder).rglob("*.py"))
    assert len(sources) > 4
    found = [f"{path.relative_to(ROOT)}:{line}" for path in sources for line in offences(path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=maybe)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "load(name, trust_remote_code=cfg.trust)",
        "yaml.load(text)",
        "archive.extractall(folder)",
        "subprocess.run(words, shell=True)",
        "eval(text)",
    ],
)
def test_the_scan_sees(source: str) -> None:
    assert offences(source)


def test_the_scan_lets_the_rest_pass() -> None:
    assert not offences(
        "torch.load(path, weights_only=True)\nmodel.eval()\nnp.load(p, allow_pickle=False)\njson.load(f)"
    )


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("owned").touch, ())


def test_a_pickle_beside_a_scann_index_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would run `scann_docids.pkl`: a folder from elsewhere may have one, and a manifest that names it."""
    import numpy as np
    from scann import scann_ops_pybind

    monkeypatch.chdir(tmp_path)
    store = write_store(tmp_path, unit_vectors(np.random.default_rng(0), 40, 16))
    index = config.compose(["index=scann", "index.num_leaves=4", "index.num_leaves_to_search=4"]).index
    spec = index_spec("made", store.fingerprint, index)

    def run(out: Path) -> dict[str, Any]:
        facts = build_index(store, index, out, Place())
        (out / "scann_docids.pkl").write_bytes(pickle.dumps([Boom()]))
        return facts

    folder = artifacts.make(spec, tmp_path, run)
    with pytest.raises(DataError, match=r"scann_docids\.pkl is a pickle"):
        open_index(folder, store, index, Place())
    assert not (tmp_path / "owned").exists()
    with suppress(Exception):  # whatever the library makes of it, it runs first
        scann_ops_pybind.load_searcher(str(folder))
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("engine", ["plaid", "bm25", "warp"])
def test_no_other_engine_leaves_or_loads_a_pickle(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every array of their folders is read by numpy, which refuses a pickled one; none is named as a pickle."""
    import numpy as np

    monkeypatch.chdir(tmp_path)
    store = write_store(tmp_path, unit_vectors(np.random.default_rng(0), 40, 16))
    index = config.compose([f"index={engine}"]).index
    chosen = engine_of(index)
    source = [] if isinstance(chosen, TextEngine) else [store]
    folder = tmp_path / "index"
    folder.mkdir()
    chosen.build(*(source or [["a cat", "a dog"]]), folder, Place())
    arrays = sorted(folder.rglob("*.npy"))
    assert arrays
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
    for path in arrays:
        np.load(path, allow_pickle=False)
        copy = shutil.copytree(folder, tmp_path / f"copy of {path.name}")
        np.save(copy / path.name, np.array([Boom()], dtype=object), allow_pickle=True)
        with suppress(BaseException):  # a panic, in the compiled ones
            chosen.load(copy, *source, Place())
        assert not (tmp_path / "owned").exists(), f"{path.name} was run"


def test_ids_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids of documents and queries, and a collection's own name, with everything that means something in a path."""
    ids = ["../../out", "/etc/out", "..", "a/b", "~root", "C:\\out", "-rf", "$HOME", "%2e%2e%2fout", "con\x01trol"]
    folder = tmp_path / "outer" / "inner" / ".. really"
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": name, "text": f"word w{n}"}) for n, name in enumerate(ids)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    (folder / "queries.jsonl").write_text("\n".join(rows))
    judged = [f"{name}\t{name}\t1" for name in ids]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n")
    home = tmp_path / "outer" / "home"
    monkeypatch.setenv("XTRREP_HOME", str(home))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(home)}
    assert cli._run(["eval", "--index", "bm25", f"data.path={folder}", "data.split=test"]) == 0
    assert "1.0000" in capsys.readouterr().out
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(home)} == before
    made = [path for path in home.rglob("*") if path.is_file()]
    assert made
    assert not [path for path in made if "out" in path.name or ".." in path.name]
    (run,) = home.rglob("run.trec")
    assert {line.split()[0] for line in run.read_text().splitlines()} == set(ids)
