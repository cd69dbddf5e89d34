"""What each engine costs and how far it is from exact: the evidence to choose one on.

Every choice of `analyze.engines` over every model's vectors, beside two oracles: exact MaxSim over all documents, and
exact XTR at the same k'. Token engines appear under both scorings; PLAID stands for MaxSim, WARP for XTR.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep import artifacts
from xtrrep import config as configs
from xtrrep.config import Config
from xtrrep.console import UsageError
from xtrrep.experiments.analyses import NOTHING_AFTER, Analysis, Cell, analyses, column_of, models_of, require_measure
from xtrrep.measure import run_file
from xtrrep.measure.run_file import Run
from xtrrep.measure.significance import paired
from xtrrep.report.figure import Timed, speed_and_quality
from xtrrep.report.table import Table
from xtrrep.retrieval.engines import DocumentEngine, TokenEngine, engine_of

if TYPE_CHECKING:
    import pandas

BM25 = "bm25"  # the reference row: words alone
ALL_TOKENS = 1_000_000_000  # a k' that no collection here reaches: every document is scored in full
MAXSIM, XTR = ORACLES = ("exact MaxSim", "exact XTR")
DEPTHS = (10, 100)


def cells(cfg: Config) -> list[Cell]:
    """The two oracles, then every engine under every scoring it knows, each with its latency."""
    if not cfg.analyze.engines:
        raise UsageError("analyze.engines names no engine", hint="'analyze.engines=[exact,plaid,warp]'")
    require_measure(cfg)
    xtr_k = cfg.retrieve.k_prime or cfg.retrieve.k_prime_xtr
    colbert_k = cfg.retrieve.k_prime or cfg.retrieve.k_prime_colbert
    kinds = {choice: engine_of(configs.compose([f"index={choice}"]).index) for choice in cfg.analyze.engines}
    found = []
    for model, chosen in models_of(cfg).items():
        exact = (*chosen, "index=exact")
        found.append(_cell(model, MAXSIM, "colbert", ALL_TOKENS, exact, timed=False))
        found.append(_cell(model, XTR, "xtr", xtr_k, exact, timed=False))
        for choice, engine in kinds.items():
            words = (*chosen, f"index={choice}")
            if isinstance(engine, TokenEngine):
                found.append(_cell(model, choice, "xtr", xtr_k, words))
                found.append(_cell(model, choice, "colbert", colbert_k, words))
            elif isinstance(engine, DocumentEngine):
                found.append(_cell(model, choice, engine.scoring, 0, words))
            else:
                hint = f"xtrrep eval --index {choice}"
                raise UsageError(f"analyze.engines names {choice}, which searches no vectors", hint=hint)
    if cfg.analyze.bm25:
        found.append(Cell(BM25, BM25, 0, (f"index={BM25}",), engine=BM25))
    return found


def _cell(model: str, engine: str, scoring: str, k_prime: int, words: tuple[str, ...], *, timed: bool = True) -> Cell:
    """A cell with nothing left of what the command line said of retrieval but k' and, under our XTR scoring, the
    imputation; k' 0 means none is ours."""
    own: tuple[str, ...] = (f"retrieve.scoring={scoring}", f"retrieve.k_prime={k_prime or 'null'}")
    if not k_prime or scoring == "colbert":
        own = (*own, "retrieve.imputation=min")
    return Cell(model, scoring, k_prime, (*words, *own, *NOTHING_AFTER), ("latency",) if timed else (), engine)


def overlap(found: Run, truth: Run, depth: int) -> float:
    """Mean share of the first `depth` documents of `truth` that stand among the first `depth` of `found`."""
    shares = []
    for query, ranking in truth.items():
        wanted = {document for document, _ in ranking[:depth]}
        if wanted:
            shares.append(len(wanted & {document for document, _ in found.get(query, [])[:depth]}) / len(wanted))
    return sum(shares) / len(shares) if shares else 0.0


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, table.md, table.txt and qps.png, .svg, .pdf."""
    measure = column_of(next(iter(scores.values())), cfg.analyze.measure)
    rankings = {cell: run_file.read(folders[cell]["retrieve"] / "run.trec") for cell in scores}
    oracles = {(cell.model, cell.engine): cell for cell in scores if cell.engine in ORACLES}
    columns = ["model", "engine", "scoring", "k'", measure, "- its oracle [95 %]", "p"]
    columns += [f"overlap@{depth} {name}" for name in ORACLES for depth in DEPTHS]
    columns += ["queries/s", "p50, ms", "p99, ms", "bytes/token", "build, s", "peak, MB"]
    rows: list[list[object]] = []
    points: list[Timed] = []
    for cell, frame in scores.items():
        value = float(frame[measure].mean())
        if cell.engine == BM25:
            rows.append([None, BM25, None, None, value, *[None] * (len(columns) - 5)])
            continue
        oracle = oracles[cell.model, MAXSIM if cell.scoring == "colbert" else XTR]
        row: list[object] = [cell.model, cell.engine, cell.scoring]
        row += [None if cell.k_prime in (0, ALL_TOKENS) else cell.k_prime, value]
        if cell is oracle:
            row += [None, None]
        else:
            difference = paired(frame[measure], scores[oracle][measure], resamples=cfg.analyze.resamples)
            row += [str(difference), float(difference.p)]
        truths = [rankings[oracles[cell.model, name]] for name in ORACLES]
        row += [overlap(rankings[cell], truth, depth) for truth in truths for depth in DEPTHS]
        row += _costs(folders[cell])
        rows.append(row)
        if cell.also:
            points.append(Timed(_latency(folders[cell])["qps"], value, cell.engine, cell.scoring, cell.model))
    table = _table(cfg, columns, rows, scores, runs, folders)
    table.save(out / "table")
    speed_and_quality(points, measure, table.title, out / "qps", base="colbert")
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "measure": measure}


def _latency(folders: Mapping[str, Path]) -> dict[str, Any]:
    facts: dict[str, Any] = artifacts.read_manifest(folders["latency"])["facts"]
    return facts


def _costs(folders: Mapping[str, Path]) -> list[object]:
    """Queries a second, median and 99th percentile in ms, index bytes a token, build seconds, peak MB of the search."""
    if "latency" not in folders:
        return [None] * 6
    index, documents = artifacts.read_manifest(folders["index"]), artifacts.read_manifest(folders["documents"])
    held = index if index["files"] else documents  # the exact engine searches the store itself
    size = sum(entry["bytes"] for name, entry in held["files"].items() if not name.startswith("tokens/"))
    timing = _latency(folders)
    times = [1000 * timing[name] if name in timing else None for name in ("p50", "p99")]
    per_token = size / documents["facts"]["tokens"]
    return [timing["qps"], *times, per_token, index["seconds"], timing["peak_mb"]]


def _table(
    cfg: Config,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    scores: Mapping[Cell, pandas.DataFrame],
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> Table:
    timed = next(_latency(f) for c, f in folders.items() if c.also)
    spoken = ", ".join(sorted(set(runs.values())))
    return Table(
        f"Engines on {cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}",
        columns,
        rows,
        [
            f"{len(next(iter(scores.values())))} queries; protocol={cfg.protocol.name}. Oracles: MaxSim over every "
            "document; XTR with exact token search.",
            "- its oracle: paired over queries with the oracle of the same scoring: bootstrap 95 % interval, two-sided "
            f"sign-flip p ({cfg.analyze.resamples} resamples, not corrected for the number of rows).",
            f"Times: recipe={timed['recipe']}, {timed['queries']} queries, {timed['threads']} threads, a process a "
            f"row; {timed['processor']}. They compare with each other only. Build times: "
            "when each index was first built.",
            "bytes/token: the engine's files (for exact the vectors); ColBERT scoring also reads the vectors. peak: "
            "the searching process.",
            f"Runs: {spoken}",
        ],
    )


analyses.register("engines", "each engine and preset beside the oracle: overlap, quality, speed, size")(
    Analysis(cells, make, schema=2)
)
