"""Inputs that people really bring, made by small generators: collections, runs, training files, models.

tests/test_cases.py gives them to the commands. The texts say nothing; an id or a number in them is what tells them
apart, so BM25 finds each document by its query.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PLACES = ["quay", "mill", "chapel", "meadow", "tunnel", "orchard", "ferry", "cellar", "tower", "bakery"]
DEEDS = ["mends", "paints", "sweeps", "opens", "counts", "carries", "numbers", "hides"]


def document(rng: random.Random, number: int, sentences: int = 3) -> str:
    first, second = rng.sample(PLACES, 2)
    return " ".join(f"someone {rng.choice(DEEDS)} the {first} near {second} at mark{number}." for _ in range(sentences))


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def collection(
    folder: Path,
    count: int = 8,
    *,
    query_id: Callable[[int], str] = "q{}".format,
    document_id: Callable[[int], str] = "d{}".format,
    judged_id: Callable[[int], str] | None = None,
    filler: str = "",
) -> Path:
    """A BEIR folder of `count` queries, each with one document; `filler` stands before every document."""
    rng = random.Random(count)
    texts = [document(rng, n) for n in range(count)]
    write_lines(
        folder / "corpus.jsonl", [{"_id": document_id(n), "text": filler + text} for n, text in enumerate(texts)]
    )
    write_lines(
        folder / "queries.jsonl",
        [{"_id": query_id(n), "text": f"who is at mark{n}?"} for n, text in enumerate(texts)],
    )
    judged = judged_id or document_id
    lines = ["query-id\tcorpus-id\tscore", *(f"{query_id(n)}\t{judged(n)}\t{1 + n % 2}" for n in range(count))]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run_file(path: Path, queries: Sequence[int], ids: Sequence[int]) -> Path:
    """A TREC run in which each of the queries ranks its own document first."""
    lines = []
    for query in queries:
        ranked = [query, *(n for n in ids if n != query)]
        lines += [f"q{query} Q0 d{n} {rank} {10 - rank}.5 made" for rank, n in enumerate(ranked, 1)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def triples(path: Path, count: int = 12, *, negatives: int = 1, one_positive: bool = False, same: int = 0) -> Path:
    """Training rows: several negatives a row, one positive for all rows, or `same` rows whose negative is it."""
    rng = random.Random(count)
    positives = [document(rng, 0 if one_positive else n) for n in range(count)]
    if one_positive:
        positives = positives[:1] * count
    rows = []
    for n, positive in enumerate(positives):
        row = {"query": f"who is at number {n}?", "positive": positive, "negative": document(rng, 100 + n)}
        if n < same:
            row["negative"] = positive
        row |= {f"negative_{i}": document(rng, 1000 * i + n) for i in range(2, negatives + 1)}
        rows.append(row)
    return write_lines(path, rows)


def bert(
    folder: Path, *, mask: bool = True, added: Sequence[str] = (), positions: int = 512, end: str | None = None
) -> Path:
    """A tiny BERT with random weights: without [MASK], with words that have no row, or with few positions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(["[MASK]"] if mask else [])]
    rng = random.Random(0)
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    raw.train_from_iterator([document(rng, n) for n in range(40)], trainer)
    ends = [(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]"} if mask else {}
    names |= {"eos_token": end} if end else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    size = len(tokenizer)
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=size,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=positions,
        )
    ).save_pretrained(folder)
    return folder


def gpt2(folder: Path, *, end: bool = True, left: bool = False) -> Path:
    """A tiny GPT-2 with random weights: its tokenizer has no padding and no mask token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    rng = random.Random(1)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([document(rng, n) for n in range(40)], trainer)
    names = {"eos_token": "<end>"} if end else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left" if left else "right", **names)
    tokenizer.save_pretrained(folder)
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        folder
    )
    return folder
