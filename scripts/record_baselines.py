"""Record trained, untrained and BM25 side by side on several collections, with paired tests, into results/recorded/.

    XTRREP_DATA=FOLDER .venv/bin/python scripts/record_baselines.py [COLLECTION ...]

FOLDER holds BEIR folders `nfcorpus` and `cranfield`; what exists is re-used, the rest is run.
"""

from __future__ import annotations

import datetime
import platform
import sys
from pathlib import Path
from typing import Any

import pandas

from xtrrep import pipeline
from xtrrep.artifacts import write_atomic
from xtrrep.config import compose
from xtrrep.measure.evaluate import read_by_query
from xtrrep.measure.significance import paired
from xtrrep.report.table import Table

COLLECTIONS = ("pydoc/test", "beir/nfcorpus/test", "beir/cranfield/test")
SYSTEMS = {
    "BM25": ("index=bm25",),
    "untrained, ColBERT scoring": ("model.source=untrained", "retrieve.scoring=colbert"),
    "untrained, XTR scoring": ("model.source=untrained", "retrieve.scoring=xtr"),
    "colbert, ColBERT scoring": ("config=colbert",),
    "colbert, XTR scoring": ("config=colbert", "retrieve.scoring=xtr"),
    "xtr_k64, XTR scoring": ("config=xtr_k64",),
    "xtr_k128, XTR scoring": ("config=xtr_k128",),
    "xtr_k256, XTR scoring": ("config=xtr_k256",),
    "xtr_k512, XTR scoring": ("config=xtr_k512",),
}
MEASURES = "data.measures=[nDCG@10,Recall@100,MRR@10,Success@5]"


def scores(folder: Path) -> pandas.DataFrame:
    return read_by_query(folder / "per_query.csv")


def rows_of(collection: str) -> list[list[object]]:
    plans = {
        name: pipeline.plan(compose([f"data={collection}", MEASURES, *words]), "evaluate")
        for name, words in SYSTEMS.items()
    }
    done = pipeline.run(list(plans.values()))
    tables = {name: scores(folders["evaluate"]) for name, folders in zip(plans, done.folders, strict=True)}
    rows: list[list[object]] = []
    for name, table in tables.items():
        scoring = name.partition(", ")[2]
        base = None if name.startswith(("BM25", "untrained")) else tables[f"untrained, {scoring}"]
        row: list[object] = [collection, name, *(float(table[m].mean()) for m in table.columns)]
        for measure in ("nDCG@10", "MRR@10"):
            difference = None if base is None else paired(table[measure], base[measure])
            row += [None, None] if difference is None else [str(difference), difference.p]
        rows.append([*row, plans[name].specs["retrieve"].fingerprint])
    return rows


def main(collections: list[str]) -> None:
    cfg = compose([])
    rows = [row for collection in collections for row in rows_of(collection)]
    columns: list[Any] = ["collection", "system", "nDCG@10", "Recall@100", "MRR@10", "Success@5"]
    columns += ["nDCG@10 - untrained [95 %]", "p", "MRR@10 - untrained [95 %]", "p", "run"]
    k_primes = f"k' = {cfg.retrieve.k_prime_xtr:,} (XTR) and {cfg.retrieve.k_prime_colbert:,} (ColBERT), exact search"
    footer = [
        f"Recorded {datetime.date.today()} at scale={cfg.scale} on {platform.machine()}, no GPU, by "
        "scripts/record_baselines.py; one training seed.",
        f"MiniLM trained on {cfg.train.data} for {cfg.train.steps} steps of {cfg.train.batch_size}; {k_primes}.",
        "Differences are against the same encoder untrained under the same scoring: paired over queries, bootstrap "
        "interval, two-sided sign-flip permutation p (10,000 resamples).",
    ]
    table = Table("Trained, untrained and BM25", columns, rows, footer)
    folder = Path(__file__).resolve().parent.parent / "results" / "recorded"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "baselines.md", lambda file: file.write(table.markdown().encode()))
    write_atomic(folder / "baselines.csv", lambda file: file.write(table.csv().encode()))
    print(table.terminal())


if __name__ == "__main__":
    main(sys.argv[1:] or list(COLLECTIONS))
