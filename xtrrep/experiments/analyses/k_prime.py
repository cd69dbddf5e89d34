"""How much a model loses as fewer tokens are retrieved: model x scoring x k', the study's Figure 1.

Every row is compared, query by query, with ColBERT under its own scoring at the same k' and with the same encoder
before training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtrrep.config import Config
from xtrrep.console import UsageError
from xtrrep.experiments.analyses import Analysis, Cell, analyses, column_of, require_measure
from xtrrep.measure.significance import Difference, paired
from xtrrep.report.figure import k_prime_sweep
from xtrrep.report.table import Table, write_text

if TYPE_CHECKING:
    import pandas

SCORINGS = {"xtr": "XTR", "colbert": "ColBERT"}
UNTRAINED = "untrained"
BM25 = "bm25"


def cells(cfg: Config) -> list[Cell]:
    """Untrained and trained models, under both scorings, at every k', and BM25 once."""
    if cfg.index["engine"] == BM25:
        raise UsageError("the k' sweep needs a token engine; BM25 is a row of its own", hint="index=exact")
    require_measure(cfg)
    models = [UNTRAINED, *(m for m in cfg.analyze.models if m != UNTRAINED)]
    found = []
    for model in models:
        source = "model.checkpoint=null", f"model.source={UNTRAINED if model == UNTRAINED else 'trained'}"
        chosen = source if model == UNTRAINED else (f"config={model}", *source)
        for scoring in SCORINGS:
            for k_prime in cfg.analyze.k_primes:
                settings: tuple[str, ...] = (f"retrieve.scoring={scoring}", f"retrieve.k_prime={k_prime}")
                if scoring == "colbert":
                    settings += ("retrieve.imputation=min",)
                found.append(Cell(model, scoring, k_prime, chosen + settings))
    if cfg.analyze.bm25:
        found.append(Cell(BM25, BM25, 0, ("index=bm25",)))
    return found


def make(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    out: Path,
    runs: Mapping[Cell, str],
    folders: Mapping[Cell, Mapping[str, Path]],
) -> dict[str, Any]:
    """table.csv, table.md, table.txt and figure1.png, .svg, .pdf."""
    measures = list(next(iter(scores.values())).columns)
    measure = column_of(next(iter(scores.values())), cfg.analyze.measure)
    compare = _comparisons(scores, measure, cfg.analyze.resamples)
    table = _table(cfg, scores, measures, measure, compare, runs)
    claims = _statements(cfg, scores, measure)
    table.save(out / "table")
    write_text(out / "table.md", table.markdown() + "\n" + claims.markdown())
    write_text(out / "table.txt", table.terminal() + "\n\n" + claims.terminal() + "\n")
    shown = [m for m in ("nDCG@10", "Recall@100", "MRR@10", "Success@5") if m in measures][:2] or measures[:2]
    bm25 = _find(scores, BM25, BM25, 0)
    levels = {} if bm25 is None else {m: {"BM25": float(bm25[m].mean())} for m in shown}
    k_prime_sweep({m: _lines(scores, m) for m in shown}, levels, _title(cfg), out / "figure1")
    return {"cells": len(scores), "queries": len(next(iter(scores.values()))), "measure": measure}


def _title(cfg: Config) -> str:
    return f"{cfg.data.id}, setup {cfg.setup}, scale={cfg.scale}, index={cfg.index['engine']}"


def _find(scores: Mapping[Cell, pandas.DataFrame], model: str, scoring: str, k_prime: int) -> pandas.DataFrame | None:
    return next((f for c, f in scores.items() if (c.model, c.scoring, c.k_prime) == (model, scoring, k_prime)), None)


def _comparisons(
    scores: Mapping[Cell, pandas.DataFrame], measure: str, resamples: int
) -> dict[Cell, tuple[Difference | None, Difference | None]]:
    """Per cell: against ColBERT as ColBERT at the same k', and against the untrained encoder at the same setting."""
    out = {}
    for cell, frame in scores.items():
        pair: list[Difference | None] = []
        for model, scoring in (("colbert", "colbert"), (UNTRAINED, cell.scoring)):
            other = _find(scores, model, scoring, cell.k_prime)
            same = (cell.model, cell.scoring) == (model, scoring)
            pair.append(None if other is None or same else paired(frame[measure], other[measure], resamples=resamples))
        out[cell] = (pair[0], pair[1])
    return out


def _table(
    cfg: Config,
    scores: Mapping[Cell, pandas.DataFrame],
    measures: Sequence[str],
    measure: str,
    compare: Mapping[Cell, tuple[Difference | None, Difference | None]],
    runs: Mapping[Cell, str],
) -> Table:
    columns = ["model", "scoring", "k'", *measures]
    columns += [f"{measure} - ColBERT [95 %]", "p", f"{measure} - untrained [95 %]", "p"]
    rows = []
    for cell, frame in scores.items():
        row: list[object] = [cell.model, SCORINGS.get(cell.scoring, "BM25"), cell.k_prime or None]
        row += [float(frame[m].mean()) for m in measures]
        for difference in compare[cell]:
            row += [None, None] if difference is None else [str(difference), float(difference.p)]
        rows.append(row)
    queries = len(next(iter(scores.values())))
    return Table(
        f"k' sweep on {_title(cfg)}",
        columns,
        rows,
        [
            f"{queries} queries; scale={cfg.scale}, protocol={cfg.protocol.name}; "
            "means over judged queries, a query with no result counts 0.",
            f"Differences are paired over queries in {measure}: bootstrap 95 % interval, two-sided sign-flip p "
            f"({cfg.analyze.resamples} resamples, not corrected for the number of rows).",
            "- ColBERT: against the colbert config under ColBERT scoring at the same k'. - untrained: against the same "
            "encoder before training, same scoring and k'.",
            f"One training seed ({cfg.train.seed}): the intervals speak of queries, not of retraining.",
            "Runs: " + ", ".join(sorted(set(runs.values()))),
        ],
    )


def _statements(cfg: Config, scores: Mapping[Cell, pandas.DataFrame], measure: str) -> Table:
    """What the table says of the study's two questions, each as one paired difference, whichever way it came out."""
    k_primes = sorted(cfg.analyze.k_primes)
    small, large = k_primes[0], k_primes[-1]
    rows: list[list[object]] = []

    def add(text: str, a: Any, b: Any) -> None:
        difference = paired(a, b, resamples=cfg.analyze.resamples)
        verdict = "no clear difference" if difference.p >= 0.05 else ("higher" if difference.mean > 0 else "lower")
        rows.append([text, str(difference), float(difference.p), verdict])

    def at(model: str, scoring: str, k_prime: int) -> Any:
        frame = _find(scores, model, scoring, k_prime)
        if frame is None:
            raise ValueError(f"no cell {model} {scoring} {k_prime}")
        return frame[measure].to_numpy()

    own = {model: "colbert" if model == "colbert" else "xtr" for model in cfg.analyze.models}
    for model, scoring in own.items():
        name = f"{model} as {SCORINGS[scoring]}, k'={large:,}"
        add(f"{name}: trained against untrained", at(model, scoring, large), at(UNTRAINED, scoring, large))
        if model != "colbert" and "colbert" in own:
            add(f"{name}: against colbert as ColBERT", at(model, scoring, large), at("colbert", "colbert", large))
    for model in own:
        if model != "colbert" and "colbert" in own:
            add(
                f"loss from k'={large:,} to {small:,} under XTR scoring: colbert's against {model}'s",
                at("colbert", "xtr", large) - at("colbert", "xtr", small),
                at(model, "xtr", large) - at(model, "xtr", small),
            )
    columns = ["statement", f"difference in {measure} [95 %]", "p", "first is"]
    return Table("What it says", columns, rows, ["Paired over queries; one seed. Nothing here was tuned to come out."])


def _lines(scores: Mapping[Cell, pandas.DataFrame], measure: str) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell, frame in scores.items():
        if cell.k_prime:
            name = f"{cell.model} as {SCORINGS[cell.scoring]}"
            lines.setdefault(name, []).append((cell.k_prime, float(frame[measure].mean())))
    return {name: sorted(points) for name, points in lines.items()}


analyses.register("k_prime", "nDCG and recall against k', every model under both scorings, with BM25 (Figure 1)")(
    Analysis(cells, make, schema=2)
)
