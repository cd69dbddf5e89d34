"""What people really bring: each command's answer to inputs made after public reports (tests/cases/).

The commands run in this process, as `xtrrep WORDS` would; a test compares what they print.
"""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cases
import numpy as np
import pytest
import torch

from xtrrep import cli, config
from xtrrep.config import collections, compose, composition, overrides
from xtrrep.console import DataError, UsageError, environment_error, machine_error, request_reason
from xtrrep.data import folder, open_collection, triples
from xtrrep.model import encoder
from xtrrep.model.forward import limit_of, tokenise
from xtrrep.pipeline import identity
from xtrrep.pipeline.identity import setting_of
from xtrrep.plan import environment, preflight


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def value(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def row(self) -> list[str]:
        """The fields of the first row of a printed table."""
        lines = self.out.splitlines()
        return lines[next(n for n, line in enumerate(lines) if line.startswith("---")) + 1].split()


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`xtrrep WORDS` in this process, with a home of its own and in its own folder."""
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XTRREP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def call(*words: str) -> Said:
        capsys.readouterr()
        identity.look_again()  # a command is a process of its own
        code = cli._run(list(words))
        torch.set_num_threads(threads)
        return Said(code, *capsys.readouterr())

    return call


# --- 1: measures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query_id", ["q{}", "topic-{}-7", "{}.0", "Ünit-{}"])
def test_measures_over_ids_that_providers_misread(query_id: str, run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c", query_id=query_id.format)
    said = run("eval", "data.path=c", "--index", "bm25", "data.measures=[nDCG@10,ERR@10,RR@10,nDCG(dcg='exp-log2')@10]")
    assert said.code == 0, said.err
    values = said.row[-4:]
    assert values == ["1.0000", f"{(4 * 1 / 16 + 4 * 3 / 16) / 8:.4f}", "1.0000", "1.0000"]


@pytest.mark.parametrize("measure", ["RBP(rel=1)", "Accuracy@5", "NumRet", "alpha_nDCG@10", "nDCGG@10", "IPrec@0.333"])
def test_a_measure_that_cannot_work_is_refused_before_anything_runs(measure: str, run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    said = run("eval", "data.path=c", "--index", "bm25", f"data.measures=[nDCG@10,{measure}]")
    assert said.code == 2
    assert measure in said.err
    assert "hint: " in said.err
    assert "run " not in said.err
    assert not (tmp_path / "home").exists()


def test_a_grade_that_a_measure_cannot_take_is_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    path = tmp_path / "c" / "qrels" / "test.tsv"
    path.write_text(path.read_text().replace("\t2\n", "\t5\n"))
    said = run("eval", "data.path=c", "--index", "bm25", "data.measures=[nDCG@10,ERR@10]")
    assert said.code == 3
    assert said.err.startswith("error: measure 'ERR@10' takes grades from 0 to 4, and the judgements hold 5")
    assert run("eval", "data.path=c", "--index", "bm25", "data.measures=[nDCG@10]").code == 0


def test_judgements_edited_between_two_calls_of_the_api_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that planned a run before kept what the files were, and served the scores of the old ones."""
    import xtrrep

    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    cases.collection(tmp_path / "c")
    words = (f"data.path={tmp_path / 'c'}", "index=bm25", "data.measures=[nDCG@10]")
    first = xtrrep.run_config(*words).facts["measures"]["nDCG@10"]
    path = tmp_path / "c" / "qrels" / "test.tsv"
    path.write_text(path.read_text().replace("q0\td0", "q0\td1"))
    assert first == 1.0
    assert xtrrep.run_config(*words).facts["measures"]["nDCG@10"] < 1.0


# --- 3: names of one collection ---------------------------------------------------------------------------------------


def settings(*words: str) -> tuple[Any, ...]:
    cfg = compose(list(words))
    return cfg.data.n_query, cfg.data.n_doc, setting_of(cfg).drop_self, tuple(cfg.data.measures)


def named() -> Iterator[tuple[str, str, str]]:
    """(name in configs/data, its name without a split, the split) of every collection of ir-datasets."""
    for name, (base, values) in collections._named_collections(config.config_dir()).items():
        yield name, base, values["split"]


@pytest.mark.parametrize(("name", "base", "split"), list(named()))
def test_a_collection_is_one_under_every_name(
    name: str, base: str, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the overrides that are composed: an alias is the name itself, and a folder has the same settings."""
    monkeypatch.delenv("XTRREP_DATA", raising=False)
    place = base.removeprefix("beir/").removesuffix("/v2")
    (tmp_path / place).mkdir(parents=True)
    brings = collections.settings_of(name)
    for local in ("", str(tmp_path)):
        monkeypatch.setenv("XTRREP_DATA", local)
        for alias in (name, base, f"{base}/{split}"):
            assert composition._group_overrides([f"data={alias}"]) == ([f"data={name}"], [])
    path = [f"data.path={tmp_path / place}", f"data.split={split}", "data.n_query=17"]
    assert composition._group_overrides(path) == (["data=folder"], [*brings, *path])
    assert composition._group_overrides(["data=folder", *path]) == (["data=folder"], [*brings, *path])
    if base.count("/") == 1:  # another split, which no file names
        groups, values = composition._group_overrides([f"data={base}/train"])
        assert groups == ["data=folder"]
        assert values[-len(brings) :] == brings


@pytest.mark.parametrize("name", ["beir/arguana", "lotte/science/test/search"])
def test_a_folder_is_searched_like_the_collection_of_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XTRREP_DATA", raising=False)
    place = tmp_path / name.removeprefix("beir/").removesuffix("/search")
    place.mkdir(parents=True)
    path = f"data.path={place}"
    assert settings(path) == settings(f"data={name}")
    assert settings(path, "data.n_query=17", "data.measures=[P@5]")[::3] == (17, ("P@5",))


def test_a_folder_of_another_name_has_no_settings_of_its_own(tmp_path: Path) -> None:
    for name in ("arguana2", "my-nq", "test", "science/test/x"):
        path = [f"data.path={tmp_path / name}"]
        assert composition._group_overrides(path) == (["data=folder"], path)


def test_the_settings_of_a_folders_name_are_said(run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "arguana")
    said = run("eval", "data.path=arguana", "--index", "bm25", "--json")
    assert "taken for beir/arguana by its name: n_query=64, drop_self=true" in " ".join(said.value["notes"])
    assert "taken for beir/arguana" in said.err


# --- 4: what is counted -----------------------------------------------------------------------------------------------


def test_queries_that_a_run_does_not_answer(run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    cases.run_file(tmp_path / "some.trec", [1, 4], range(8))
    words = ("eval", "data.path=c", "--run", "some.trec", "data.measures=[RR]")
    note = "6 of 8 judged queries have no line in some.trec: each scores 0 in the mean"
    for _ in range(2):  # at first, and re-used
        said = run(*words)
        assert note in said.out
        assert note in said.err
        assert said.row[-1] == "0.2500"
    assert run(*words, "--json").value["notes"] == [note]
    cases.run_file(tmp_path / "all.trec", range(8), range(8))
    assert run("eval", "data.path=c", "--run", "all.trec", "--json").value["notes"] == []


def test_judgements_of_absent_documents(run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c", judged_id=lambda n: f"d{n}.0" if n % 4 == 0 else f"d{n}")
    note = "2 judgements of 8 are of documents that are not in the corpus: no system can find them"
    for measure in ("nDCG@10", "P@5"):  # the second re-uses the collection
        said = run("eval", "data.path=c", "--index", "bm25", f"data.measures=[{measure}]")
        assert said.err.count(note) == 1
        assert said.out.count(note) == 1
    assert run("eval", "data.path=c", "--index", "bm25", "--json").value["notes"] == [note]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.bert(tmp_path_factory.mktemp("models") / "short", positions=128)


def model(backbone: Path, *words: str) -> list[str]:
    return ["model.source=untrained", "config=colbert", f"model.backbone={backbone}", "model.dim=16", *words]


def test_texts_that_are_cut(run: Run, tmp_path: Path, short: Path) -> None:
    cases.collection(tmp_path / "c", filler="nothing to see " * 3)
    words = model(short, "model.n_doc=20", "model.n_query=6")
    for _ in range(2):
        said = run("eval", "data.path=c", *words)
        assert said.code == 0, said.err
        for kind in (
            "8 of 8 documents are longer than model.n_doc=20",
            "8 of 8 queries are longer than model.n_query=6",
        ):
            assert kind in said.err
            assert kind in said.out
    said = run("search", "who is at mark5, and at mark6?", "data.path=c", *words)
    assert "the query is longer than model.n_query=6 and was cut: " in said.err
    notes = run("eval", "data.path=c", *words, "--json").value["notes"]
    tokenizer = encoder.build(compose(words).model, "cpu").tokenizer
    rows = folder.read_folder("c", tmp_path / "c", "test")
    whole = [len(ids) for ids in tokenizer([text for _, text in rows.documents()], truncation=False)["input_ids"]]
    share = sum(n - 20 for n in whole) / sum(whole)
    assert f"were cut: {share:.1%} of all their tokens" in notes[0]
    assert run("eval", "data.path=c", *words, "model.n_doc=120", "model.n_query=32", "--json").value["notes"] == []


@pytest.mark.parametrize("limit", [3, 8, 40])
def test_what_is_counted_as_cut_is_what_is_lost(limit: int, short: Path) -> None:
    """Against the tokenizer itself, over lengths below, at and above the limit, with markers and with expansion."""
    texts = [" ".join(["mill"] * n) for n in range(1, 45)] + ["", "the quay near number 7"]
    for expands in ("true", "false"):
        made = encoder.build(
            compose(
                model(short, f"model.n_query={limit}", f"model.n_doc={limit}", f"model.query_expansion={expands}")
            ).model,
            "cpu",
        )
        for task in ("document", "query"):
            free = [len(ids) for ids in made.tokenizer(texts, truncation=False)["input_ids"]]
            cut = tokenise(made, texts, task).cut
            assert limit_of(made, task) == cut.limit == limit
            assert cut.texts == sum(n > limit for n in free)
            assert (cut.lost, cut.tokens) == (sum(max(0, n - limit) for n in free), sum(free))
    before = made.tokenizer.backend_tokenizer.to_str()
    tokenise(made, texts, "document")
    assert made.tokenizer.backend_tokenizer.to_str() == before


def test_what_is_odd_about_triples(tmp_path: Path) -> None:
    def odd(path: Path, batch: int = 4) -> list[str]:
        return triples.what_is_odd(str(path), triples.read_triples(str(path)), batch)

    assert odd(cases.triples(tmp_path / "plain.jsonl")) == []
    seven = odd(cases.triples(tmp_path / "seven.jsonl", negatives=7))
    assert len(seven) == 1
    assert "not read: negative_2, negative_3, negative_4, negative_5, negative_6, negative_7" in seven[0]
    (one,) = odd(cases.triples(tmp_path / "one.jsonl", one_positive=True))
    assert "12 of 12 rows" in one
    assert "3.0 of them on average are copies of its own positive" in one
    (same,) = odd(cases.triples(tmp_path / "same.jsonl", same=5))
    assert "5 of 12 rows" in same
    rows = triples.read_triples(str(tmp_path / "seven.jsonl"))
    rows.to_parquet(tmp_path / "three.parquet")
    assert odd(tmp_path / "three.parquet") == []


def test_odd_triples_are_said_before_the_training_and_when_it_is_re_used(run: Run, tmp_path: Path, short: Path) -> None:
    cases.triples(tmp_path / "t.jsonl", negatives=3)
    words = ["train.data=null", "train.triples=t.jsonl", "train.steps=1", "train.batch_size=4", "train.n_doc=16"]
    words += ["config=colbert", f"model.backbone={short}", "model.dim=8", "model.n_query=8", "model.n_doc=16"]
    for first in (True, False):
        said = run("train", *words)
        assert said.code == 0, said.err
        assert said.err.count("columns that are not read: negative_2, negative_3") == 1
        assert ("run    train" in said.err) == first


# --- 5: models --------------------------------------------------------------------------------------------------------


def test_tokenizers_that_lack_something(run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    lengths = ("model.n_doc=40", "model.n_query=12")
    for name, left in (("right", False), ("left", True)):
        said = run("eval", "data.path=c", *model(cases.gpt2(tmp_path / name, left=left), *lengths))
        assert said.code == 0, said.err
        assert "has no padding token: '<end>' is used" in said.err
        assert "has no [MASK] token: queries are expanded with '<end>'" in said.err
    for made, says, hint in (
        (cases.gpt2(tmp_path / "no-end", end=False), "no padding token and no end-of-text", "add_special_tokens"),
        (cases.bert(tmp_path / "no-mask", mask=False), "no [MASK] token", "model.query_expansion=false"),
        (
            cases.bert(tmp_path / "more", added=["[Q]", "[D]", "quay near"]),
            "embeddings for only",
            "resize_token_embeddings",
        ),
    ):
        said = run("eval", "data.path=c", *model(made, *lengths))
        assert said.code == 3
        error, given = said.err.splitlines()[-2:]
        assert error.startswith(f"error: the tokenizer of {made}")
        assert says in error
        assert given.startswith("hint: ")
        assert hint in given
    no_mask = model(tmp_path / "no-mask", *lengths, "model.query_expansion=false")
    assert run("eval", "data.path=c", *no_mask).code == 0
    ended = cases.bert(tmp_path / "ended", mask=False, end="[SEP]")
    assert "expanded with '[SEP]'" in run("eval", "data.path=c", *model(ended, *lengths)).err


def test_padding_with_the_end_token_changes_no_vector(tmp_path: Path) -> None:
    from xtrrep.config import Precision
    from xtrrep.store.encode import encode_batch

    cfg = compose(model(cases.gpt2(tmp_path / "g"), "model.n_doc=40", "model.query_expansion=false")).model
    made = encoder.build(cfg, "cpu")
    texts = [("a", "the quay"), ("b", "the mill near the tower number 12 and the ferry number 4")]
    both = encode_batch(made, texts, task="document", precision=Precision.fp32, device="cpu")
    for text, (vectors, _) in zip(texts, both, strict=True):
        ((alone, _),) = encode_batch(made, [text], task="document", precision=Precision.fp32, device="cpu")
        np.testing.assert_allclose(vectors.astype(np.float32), alone.astype(np.float32), atol=2e-3)


@pytest.mark.parametrize("key", ["model.n_doc", "data.n_doc", "model.n_query", "data.n_query"])
def test_the_hint_for_a_length_can_be_typed(key: str, run: Run, tmp_path: Path, short: Path) -> None:
    cases.collection(tmp_path / "c")
    words = ["eval", "data.path=c", *model(short, "model.n_doc=50", "model.n_query=8")]
    said = run(*words, f"{key}=200")
    assert said.code == 2
    hint = said.err.splitlines()[-1].removeprefix("hint: ").split()[0]
    assert hint == f"{key}=128"
    assert run(*words, hint).code == 0


# --- 6: the environment -----------------------------------------------------------------------------------------------

FAULTS = {
    "getpwuid": (KeyError("getpwuid(): uid not found: 12345"), "has no name", "LOGNAME"),
    "temporary": (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "temporary", "TMPDIR"),
    "home": (RuntimeError("Could not determine home directory."), "no home folder", "HOME"),
    "permission": (PermissionError(13, "Permission denied", "/cache/x"), "Permission denied (/cache/x)", "doctor"),
    "full": (OSError(28, "No space left on device", "/cache/x"), "No space left on device", "free some space"),
    "read-only": (OSError(30, "Read-only file system", "/cache/x"), "Read-only file system", "XTRREP_HOME"),
    "memory": (MemoryError(), "out of memory", "more memory"),
    "no shared memory": (FileNotFoundError(2, "No such file", "/dev/shm"), "shared memory (/dev/shm)", "--shm-size"),
    "full shared memory": (
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: No space left on device (28)"),
        "shared memory (/dev/shm) is missing, read-only or full",
        "--shm-size",
    ),
    "NCCL": (
        RuntimeError(
            "NCCL error\nError while creating shared memory segment /dev/shm/nccl-x (size 1), error: No space"
        ),
        "shared memory (/dev/shm) is missing, read-only or full",
        "--shm-size",
    ),
    "matplotlib": (
        OSError("Matplotlib requires access to a writable cache directory, but there was an issue"),
        "matplotlib has no folder for its cache",
        "MPLCONFIGDIR",
    ),
}
CACHES = (
    "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "IR_DATASETS_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR",
)  # fmt: skip


@pytest.mark.parametrize("number", [13, 17, 20, 28, 30])
@pytest.mark.parametrize("variable", CACHES)
def test_a_fault_in_a_cache_names_the_variable_that_moves_it(
    variable: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also below other exceptions that were raised from it, and never for a file in XTRREP_HOME."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XTRREP_HOME", str(tmp_path / "home"))
    for other in CACHES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    above = DataError("no model", hint="x")
    for place, moves in ((tmp_path / "cache" / "hub" / "x", variable), (tmp_path / "home" / "x", "XTRREP_HOME")):
        error = OSError(number, os.strerror(number), str(place))
        loading = RuntimeError("cannot load")
        loading.__cause__ = error
        for raised in (error, loading):
            found = machine_error(raised)
            if number in (17, 20) and moves == "XTRREP_HOME":
                assert found is None
                continue
            assert found is not None
            assert str(place) in str(found)
            assert moves in found.hint or (number == 13 and moves == "XTRREP_HOME")
    above.__cause__ = error
    assert machine_error(above) is None
    full = machine_error(OSError(28, os.strerror(28)), variable)  # a write that fails names no file
    assert full is not None
    assert str(full) == f"No space left on device: {tmp_path / 'cache'}"
    assert full.hint.startswith(f"free some space, or set {variable} to a larger disk")


def test_the_reason_of_a_request_is_not_what_was_tried_after_it() -> None:
    """`datasets` looks into its cache when a download fails, and raises the first error `from None`."""

    def load() -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as first:
            try:
                raise FileNotFoundError("not cached in None")
            except FileNotFoundError:
                raise first from None

    with pytest.raises(OSError, match="No space") as caught:
        load()
    assert request_reason(caught.value) == "OSError: [Errno 28] No space left on device"


def test_lost_processes_are_not_blamed_for_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from xtrrep.train import distributed

    monkeypatch.setattr(distributed, "size", lambda: 2)
    for name in ("NCCL", "full shared memory"):
        with pytest.raises(RuntimeError), distributed.lost_explained():
            raise FAULTS[name][0]
    with pytest.raises(DataError, match="another process"), distributed.lost_explained():
        raise RuntimeError("NCCL error: remote process exited")


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("place", ["backbone", "saved"])
def test_the_environment_is_not_blamed_on_a_model(
    name: str, place: str, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, says, hint = FAULTS[name]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    cfg = compose(model(short, "model.n_doc=60")).model
    if place == "saved":
        encoder.build(cfg, "cpu").save(str(tmp_path / "saved"))
        monkeypatch.setattr(encoder, "_load_saved", broken)
    else:
        monkeypatch.setattr(encoder.tensors, "backbone", broken)
    if isinstance(error, MemoryError):  # passes through, to the same end
        assert says in str(machine_error(error))
        return
    with pytest.raises((DataError, RuntimeError)) as caught:
        encoder.load(tmp_path / "saved", cfg, "cpu") if place == "saved" else encoder.build(cfg, "cpu")
    explained = machine_error(caught.value) or caught.value  # one that passes through is explained by the command line
    assert isinstance(explained, DataError)
    assert says in str(explained)
    assert hint in explained.hint
    assert "folder complete" not in explained.hint


@pytest.mark.parametrize("name", FAULTS)
def test_the_environment_is_not_blamed_on_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads a file or computes with foreign code names the machine's fault as such."""
    import ir_measures
    import pyarrow.parquet
    import safetensors

    from xtrrep.measure import evaluate
    from xtrrep.model import tensors
    from xtrrep.store import imported
    from xtrrep.train import teacher

    error, says, _ = FAULTS[name]

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(safetensors, "safe_open", broken)
    monkeypatch.setattr(pyarrow.parquet, "read_schema", broken)
    monkeypatch.setattr(np.lib.format, "open_memmap", broken)
    monkeypatch.setattr(ir_measures.providers.registry["pytrec_eval"], "evaluator", broken)
    monkeypatch.setattr("sentence_transformers.SentenceTransformer", broken)
    for read in (
        lambda: imported._load(tmp_path / "x.npy"),
        lambda: tensors.read(tmp_path, ["x"]),
        lambda: triples._read_parquet(tmp_path / "x.parquet", None),
        lambda: evaluate.evaluate({"q": {"d": 1}}, {"q": [("d", 1.0)]}, ["nDCG@10"]),
        lambda: teacher._load(str(tmp_path), False, 8, "cpu", None),
    ):
        with pytest.raises(Exception) as caught:  # noqa: PT011  # one that passes through is explained by the caller
            read()
        explained = machine_error(caught.value) or caught.value
        assert says in str(explained)
        assert isinstance(explained, DataError)


def test_an_error_of_a_model_is_not_blamed_on_the_environment() -> None:
    for error in (
        ValueError("Unrecognized model"),
        KeyError("bert"),
        FileNotFoundError(2, "No such file", "x"),
        OSError(),
    ):
        assert environment_error(error) is None


def findings() -> dict[str, tuple[bool | None, str, str]]:
    return {what: (fine, finding, fix) for what, fine, finding, fix in environment.rows()}


def test_doctor_finds_what_the_environment_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass
    import tempfile

    good = findings()
    assert {"user", "home folder", "temporary files", "cache HF_HOME"} <= good.keys()

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", None)
    bad = findings()
    assert bad["user"] == (False, bad["user"][1], "export LOGNAME=me")
    assert bad["home folder"][0] is None
    assert "TMPDIR=/nowhere cannot be written" in bad["temporary files"][1]
    monkeypatch.setattr(tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError(2, "No usable")))
    assert findings()["temporary files"][0] is False


def test_doctor_finds_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a folder's place is found by trying, and so is a full disk; both for every cache and shared memory."""
    import tempfile

    (tmp_path / "file").touch()
    for name in CACHES:
        monkeypatch.setenv(name, str(tmp_path / "file"))
    monkeypatch.setattr(environment, "SHARED", tmp_path / "gone")
    found = findings()
    for name in CACHES:
        assert found[f"cache {name}"] == (
            None,
            f"{tmp_path / 'file'}: Not a directory; nothing new is kept there",
            f"export {name}=FOLDER, one that you may write to",
        )
    assert found["shared memory"][:2] == (None, f"{tmp_path / 'gone'}: it is not there; several GPUs need it")

    def full(dir: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(environment, "SHARED", tmp_path)
    found = findings()
    for name in ("home folder", "temporary files", "shared memory", *(f"cache {name}" for name in CACHES)):
        assert found[name][0] is not True
        assert "No space left on device" in found[name][1]
    assert {what: fine for what, fine, _, _ in preflight.doctor()}["writable"] is False


# --- 7: plain values --------------------------------------------------------------------------------------------------

ODD_TEXTS = [
    "[old] run.trec",
    "{curly}.trec",
    "a=b.trec",
    "it's.trec",
    "'quoted.trec",
    '"double.trec',
    "sp ace.trec",
    "-dash.trec",
    "--dashes.trec",
    "back\\slash.trec",
    "end\\",
    "both\\'of them",
    "a,b.trec",
    "(paren).trec",
    "#hash.trec",
    "key: value.trec",
    "null.trec",
    "1e3",
    "true",
    "ünï.trec",
    "%41.trec",
    "*?.trec",
    "$HOME.trec",
    "a|b;c&d.trec",
]


def read_by_hydra(override: str) -> Any:
    """The value that Hydra's grammar reads in an override as we hand it over."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([overrides.for_hydra(override)])
    return parsed.value()


TEXT_KEYS = [key for key in composition._known_keys(config.config_dir(), None) if overrides.is_text(key)]


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_a_text_is_what_was_typed(key: str) -> None:
    for text in ODD_TEXTS:
        assert read_by_hydra(f"{key}={text}") == text


def test_any_text_and_any_list_of_texts_is_what_was_typed() -> None:
    rng = random.Random(3)
    signs = "ab1 .,:=-+~@#%&*?!|;<>/\\\"'()[]{}éΩ\t"
    for _ in range(150):
        text = "".join(rng.choices(signs, k=rng.randint(1, 8)))
        if "${" not in text and overrides.unwrapped(text) == text:
            assert read_by_hydra(f"data.path={text}") == text
        items = ["".join(rng.choices("abP@5._-: é", k=rng.randint(1, 5))).strip() or "x" for _ in range(3)]
        items.append(f"P(rel={rng.randint(1, 4)},judged_only=True)@{rng.randint(1, 9)}")
        assert read_by_hydra(f"data.measures=[{','.join(items)}]") == items


@pytest.mark.parametrize("text", ['[it\'s] {a}="b" \\', "1e3"])
def test_a_composed_text_is_what_was_typed(text: str) -> None:
    cfg, origins = config.compose_with_origins([f"data.path={text}", f"train.triples={text}", "train.data=null"])
    assert (cfg.data.path, cfg.train.triples) == (text, text)
    assert origins["data.path"] == f"override data.path={text}"


def test_options_and_overrides_take_paths_as_they_are(run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    for number, text in enumerate(ODD_TEXTS[::4]):
        cases.run_file(tmp_path / text, range(8), range(8))
        words = ["--run", text] if number % 2 else [f"retrieve.from_run={text}", "retrieve.scoring=run"]
        assert run("eval", "data.path=c", *words, "data.measures=[RR]").row[-1] == "1.0000"
    for text in ("-dash.trec", "--dashes.trec"):
        cases.run_file(tmp_path / text, range(8), range(8))
        assert run("eval", "data.path=c", "--run", text, "data.measures=[RR]").row[-1] == "1.0000"
    shutil.move(tmp_path / "c", tmp_path / '[it\'s] {my} c=1, "2"')
    said = run("eval", 'data.path=[it\'s] {my} c=1, "2"', "--index", "bm25", "data.measures=[RR]")
    assert said.code == 0, said.err
    out = "'[odd]' out=1.trec"
    assert run("retrieve", 'data.path=[it\'s] {my} c=1, "2"', "--index", "bm25", "--out", out).code == 0
    assert (tmp_path / out).is_file()


@pytest.mark.parametrize(
    ("typed", "measures"),
    [
        ("[nDCG@10,AP(rel=2)]", ["nDCG@10", "AP(rel=2)"]),
        ("[ nDCG@10 , P(rel=2)@5 ]", ["nDCG@10", "P(rel=2)@5"]),
        ('["nDCG@10","ERR@10"]', ["nDCG@10", "ERR@10"]),
        ("['nDCG@10',R@5]", ["nDCG@10", "R@5"]),
        ("[nDCG(gains={1:2,2:5})@10]", ["nDCG(gains={1:2,2:5})@10"]),
        ("[nDCG(dcg='exp-log2')@10,Compat(p=0.8,normalize=False)]", None),
        ("[SetF(rel=2,beta=0.5)]", ["SetF(rel=2,beta=0.5)"]),
    ],
)
def test_measures_are_read_as_they_are_written(typed: str, measures: list[str] | None) -> None:
    found = compose([f"data.measures={typed}"]).data.measures
    assert found == (measures or ["nDCG(dcg='exp-log2')@10", "Compat(p=0.8,normalize=False)"])


@pytest.mark.parametrize("typed", ["[", "[nDCG@10", "[P(rel=2@5]", "[P@5)]", "['P@5]", "[P@5,,R@5]", "[P@5,]"])
def test_a_list_that_is_not_closed_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="cannot be read as a list") as caught:
        compose([f"data.measures={typed}"])
    assert "bracket or a quote" in caught.value.hint


# --- 8: small ones ----------------------------------------------------------------------------------------------------


def test_a_query_that_begins_with_a_dash(run: Run, tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    words = ["data.path=c", "--index", "bm25", "--top", "1", "--json"]
    for query in ("-mark5", "-someone mark5", "--someone mark5", "- mark5", "-v -- mark5"):
        said = run("search", query, *words)
        assert said.code == 0, said.err
        assert said.value["query"] == query
        assert said.value["documents"][0]["id"] == "d5"
    for wrong in (["search", "--tpo", "3", "mark5"], ["search", "mark5", "--tpo", "3"], ["search", "x", "-q"]):
        said = run(*wrong)
        assert said.code == 2
        assert "No such option: -" in said.err


@pytest.mark.parametrize("zipped", [("qrels/test.tsv",), ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")])
def test_any_file_of_a_collection_may_be_zipped(zipped: tuple[str, ...], tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    expected = folder.read_folder("c", tmp_path / "c", "test")
    documents = list(expected.documents())
    for name in zipped:
        path = tmp_path / "c" / name
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    found = folder.read_folder("c", tmp_path / "c", "test")
    assert (found.queries, found.qrels, list(found.documents())) == (expected.queries, expected.qrels, documents)
    with pytest.raises(DataError) as caught:
        folder.read_folder("c", tmp_path / "c", "dev")
    assert "splits here: test" in caught.value.hint


def test_a_local_copy_of_a_named_collection_may_be_zipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.collection(tmp_path / "scidocs")
    path = tmp_path / "scidocs" / "qrels" / "test.tsv"
    path.with_name("test.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    monkeypatch.setenv("XTRREP_DATA", str(tmp_path))
    assert len(open_collection(compose(["data=beir/scidocs"]).data, tmp_path).queries) == 8


def test_a_blank_judged_query_is_called_blank(tmp_path: Path) -> None:
    cases.collection(tmp_path / "c")
    path = tmp_path / "c" / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["text"] = " \t"
    cases.write_lines(path, rows)
    with pytest.raises(DataError, match="no text for 1 of 8 judged queries, such as 'q3'") as caught:
        folder.read_folder("c", tmp_path / "c", "test")
    assert "take their judgements out of test.tsv" in caught.value.hint
