"""What a stage computes and leaves, counted from its config and from the figures of `configs/costs.yaml`.

Work is counted in multiplications and additions (two for each weight and token, attention included, three times that
with the backward), so that a rate measured with one encoder serves another: the plan says where it does.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from xtrrep import config as configs
from xtrrep.config import Config, Recipe, Source, kept_steps
from xtrrep.config.yaml_file import check_keys, need_list, need_mapping, need_number, read_yaml
from xtrrep.data import resolve
from xtrrep.pipeline import Step
from xtrrep.pipeline.identity import lengths_of
from xtrrep.retrieval.engines import AnyEngine, BuildCost, TokenEngine, engine_of

FILE = "costs.yaml"
MEMORY = {"gb", "document", "vector"}  # of a stage in the figures
QUERY_BYTES = 5000  # of a run file: 100 lines of about 50 bytes


@cache
def figures(path: Path | None = None) -> dict[str, Any]:
    """`configs/costs.yaml`. Raises UsageError naming file and fault."""
    path = path or configs.config_dir() / FILE
    found = need_mapping(path, "the file", read_yaml(path))
    parts = {"archives", "streams", "models", "words", "text", "training", "memory"}
    check_keys(path, "the file", found, parts, parts)
    for kind in ("archives", "streams"):
        for entry in need_list(path, kind, found[kind]):
            wanted = {"name", "bytes", "from"} | ({"serves"} if kind == "archives" else set())
            check_keys(path, kind, entry, wanted, wanted)
            if entry["bytes"] is not None:
                need_number(path, f"{kind}, {entry['name']}", entry["bytes"])
    for kind, numbers in (
        ("models", {"parameters", "in_layers", "layers", "width"}),
        ("words", {"words"}),
        ("memory", MEMORY),
    ):
        for name, entry in need_mapping(path, kind, found[kind]).items():
            check_keys(path, f"{kind}, {name}", entry, numbers | {"from"}, numbers | {"from"})
            for key in numbers:
                need_number(path, f"{kind}, {name}, {key}", entry[key])
    for kind in ("text", "training"):
        for key, value in need_mapping(path, kind, found[kind]).items():
            need_number(path, f"{kind}, {key}", value)
    return found


def _words(data_id: str) -> float | None:
    """Mean words of a collection's document, of the longest id that it begins with."""
    found = [(name, entry["words"]) for name, entry in figures()["words"].items() if data_id.startswith(name)]
    return float(max(found, key=lambda pair: len(pair[0]))[1]) if found else None


def pieces(cfg: Config) -> float | None:
    """Tokens that a document of `cfg.data` has in the encoder, cut at its length."""
    words, text = _words(cfg.data.id), figures()["text"]
    return (
        None if words is None else float(min(words * text["pieces_a_word"], text["longest_mean"] * lengths_of(cfg)[1]))
    )


def vectors(cfg: Config) -> float | None:
    """Vectors that are kept of a document."""
    tokens, share = pieces(cfg), figures()["text"]["vectors_a_piece"] if cfg.model.skip_punctuation else 1.0
    return None if tokens is None else tokens * share / cfg.encode.pool_factor


def forward_operations(backbone: str, tokens: float, length: float) -> float | None:
    """Operations of one pass over `tokens` tokens in sequences of `length`. None for a backbone without figures.

    Every layer is taken to attend to the whole sequence; most of ModernBERT's look at 128 tokens, which makes this an
    upper figure there (by 7 % at 300 tokens).
    """
    model = figures()["models"].get(backbone)
    if model is None:
        return None
    return float(tokens * (2.0 * model["in_layers"] + 4.0 * model["layers"] * model["width"] * length))


def training_operations(cfg: Config, *, distil: bool, padded: float | None = None) -> float | None:
    """Operations of one step: queries and documents forward, and twice that backward.

    `padded` is the length of the batch's documents in tokens; None takes the assumption of `configs/costs.yaml`.
    """
    loop = cfg.distill if distil else cfg.train
    ways = cfg.distill.n_ways if distil else 2
    length = min(padded or figures()["text"]["padded_in_training"], loop.n_doc)
    parts = [
        forward_operations(cfg.model.backbone, loop.batch_size * cfg.model.n_query, cfg.model.n_query),
        forward_operations(cfg.model.backbone, loop.batch_size * ways * length, length),
    ]
    known = [part for part in parts if part is not None]
    return 3.0 * sum(known) if len(known) == len(parts) else None


Counted = tuple[float | None, str, str | None, float | None, float]  # work, its unit, its rate, disk, held


def nothing(cfg: Config, step: Step) -> Counted:
    return None, "", None, None, 0.0


def _count_data(cfg: Config, step: Step) -> Counted:
    data = resolve(cfg.data)
    if step.stage.name != "data" or not data.size:
        return None, "", None, None, 0.0
    words = _words(data.id)
    disk = None if words is None else data.size[0] * words * figures()["text"]["bytes_a_word"]
    return float(data.size[0]), "documents", None, disk, 0.0


def _count_training(cfg: Config, step: Step) -> Counted:
    distil = step.stage.name == "distill"
    one = training_operations(cfg, distil=distil)
    model, each = figures()["models"].get(cfg.model.backbone), figures()["training"]
    disk, held = (
        (None, 0.0) if model is None else (each["kept"] * model["parameters"], each["held"] * model["parameters"])
    )
    loop = cfg.distill if distil else cfg.train
    if disk is not None:
        disk *= 1 + len(kept_steps(loop))
    return (None if one is None else one * loop.steps), "operations", "train", disk, held


def _count_documents(cfg: Config, step: Step) -> Counted:
    tokens, kept, size = pieces(cfg), vectors(cfg), cfg.data.size
    if tokens is None or kept is None or not size or cfg.model.source is Source.vectors:
        return None, "operations", "encode", None, 0.0
    work = forward_operations(cfg.model.backbone, size[0] * tokens, tokens)
    return work, "operations", "encode", size[0] * kept * (2 * cfg.model.dim + 4), 0.0


def _count_queries(cfg: Config, step: Step) -> Counted:
    if not cfg.data.size:
        return None, "operations", "encode", None, 0.0
    tokens = lengths_of(cfg)[0]
    work = forward_operations(cfg.model.backbone, _queries(cfg) * tokens, tokens)
    return work, "operations", "encode", _queries(cfg) * tokens * (2 * cfg.model.dim + 4), 0.0


def _queries(cfg: Config) -> int:
    count = cfg.data.size[1] if cfg.data.size else 0
    return min(count, cfg.data.max_queries or count)


def _count_index(cfg: Config, step: Step) -> Counted:
    kept, size = vectors(cfg), cfg.data.size
    if compares_everything(cfg):
        return 0.0, "operations", "product", 0.0, 0.0
    built = _build_cost(engine_of(cfg.index), size[0], kept, cfg.model.dim) if kept is not None and size else None
    if built is None:
        return None, "operations", None, None, 0.0
    return built.operations, "operations", "product", built.disk, built.held


@cache
def _build_cost(engine: AnyEngine, documents: int, each: float, dim: int) -> BuildCost | None:
    """One answer for all models of a table."""
    return engine.build_cost(documents, each, dim)


def compares_everything(cfg: Config) -> bool:
    engine = engine_of(cfg.index)
    return isinstance(engine, TokenEngine) and engine.exhaustive


def _count_retrieve(cfg: Config, step: Step) -> Counted:
    kept, size = vectors(cfg), cfg.data.size
    if not size:
        return None, "queries", None, None, 0.0
    disk = float(_queries(cfg) * QUERY_BYTES)
    if cfg.retrieve.from_run is None and compares_everything(cfg) and kept is not None:
        pairs = _queries(cfg) * lengths_of(cfg)[0] * size[0] * kept
        return 2.0 * cfg.model.dim * pairs, "operations", "search", disk, 0.0
    return float(_queries(cfg)), "queries", None, disk, 0.0


def _count_latency(cfg: Config, step: Step) -> Counted:
    asked = cfg.latency
    count = _queries(cfg) if asked.recipe is Recipe.paper else min(_queries(cfg), asked.max_queries) * asked.repeats
    return float(count) or None, "queries", None, 0.0, 0.0


def _count_evaluate(cfg: Config, step: Step) -> Counted:
    return float(_queries(cfg)) or None, "queries", None, 0.0, 0.0


COUNTS = {
    "data": _count_data,
    "train": _count_training,
    "distill": _count_training,
    "documents": _count_documents,
    "queries": _count_queries,
    "plain_documents": _count_documents,
    "plain_queries": _count_queries,
    "index": _count_index,
    "retrieve": _count_retrieve,
    "evaluate": _count_evaluate,
    "latency": _count_latency,
}
