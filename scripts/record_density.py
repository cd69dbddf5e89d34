"""Record how sparse each k_train is at the batch of every scale, into results/recorded/density.{md,csv}.

    .venv/bin/python scripts/record_density.py             the table; some minutes on one core
    .venv/bin/python scripts/record_density.py demo KEY=VALUE ...   one scale, or a batch of your own; recorded nowhere

The untrained encoder of scale=demo embeds batches of pydoc/train triples, drawn by seed, at each scale's batch size and
document length. A scale's `train.sparse_as` holds the k_train whose share is nearest to that of the study's k_train at
`paper`, which is one batch as large as the study's, of other texts.
"""

from __future__ import annotations

import datetime
import json
import platform
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from xtrrep import pipeline
from xtrrep.artifacts import write_atomic
from xtrrep.config import compose, options
from xtrrep.model.encoder import build
from xtrrep.report.table import Table
from xtrrep.train.density import embed, shares

STUDYS = (64, 128, 256, 512)
QUERIES = 392  # at least so many, in as many batches as that takes
COLUMNS = ["setting", "batch", "documents", "tokens", "k_train of the study", "share in the study's batch"]
COLUMNS += ["share here", "nearest k_train here", "its share", "its part of the tokens"]


Measure = tuple[float, dict[int, float]]  # mean tokens of a batch, and the mean share of each k_train


def measured(triples: Sequence[Mapping[str, str]], batch_size: int, n_doc: int) -> Measure:
    """Over batches that are drawn by the seed."""
    cfg = compose(["scale=demo"])
    model, rng = build(cfg.model, "cpu"), random.Random(cfg.train.seed)
    batches = [embed(model, rng.sample(triples, batch_size), n_doc) for _ in range(-(-QUERIES // batch_size))]
    found = [shares(batch, range(1, max(STUDYS) + 1)) for batch in batches]
    tokens = sum(len(batch.tokens) for batch in batches) / len(batches)
    return tokens, {k: sum(one[k] for one in found) / len(found) for k in found[0]}


def nearest(measure: Mapping[int, float], share: float) -> int:
    """The k_train whose share is nearest to `share`."""
    return min(measure, key=lambda k: abs(measure[k] - share))


def main(words: Sequence[str]) -> None:
    plan = pipeline.plan(compose(["scale=demo"]), "triples")
    lines = (pipeline.run([plan]).folders[0]["triples"] / "triples.jsonl").read_text(encoding="utf-8").splitlines()
    triples = [json.loads(line) for line in lines]
    chosen = [[f"scale={words[0]}", *words[1:]]] if words else [[f"scale={name}"] for name in options("scale")]
    trains = {" ".join(texts): compose(texts).train for texts in [["scale=paper"], *chosen]}
    batches = {name: (train.batch_size, train.n_doc) for name, train in trains.items()}
    measures = {batch: measured(triples, *batch) for batch in dict.fromkeys(batches.values())}
    study = measures[batches["scale=paper"]][1]
    rows: list[list[object]] = []
    for name in (" ".join(texts) for texts in chosen):
        tokens, found = measures[batches[name]]
        for k in STUDYS:
            here = nearest(found, study[k])
            rows.append([name, batches[name][0], 2 * batches[name][0], round(tokens), k, study[k], found[k], here,
                         found[here], here / tokens])  # fmt: skip
    footer = [
        f"Recorded {datetime.date.today()} on {platform.machine()}, no GPU, by scripts/record_density.py.",
        "A share is of the batch's (query token, document) pairs in which a token is retrieved, [MASK] expansion "
        f"included; a mean over batches of at least {QUERIES} queries in all. Untrained MiniLM on pydoc/train, each "
        "scale's batch size and document length. paper is the study's batch, of these texts.",
    ]
    table = Table("How sparse a k_train is", COLUMNS, rows, footer)
    print(table.terminal())
    if not words:
        folder = Path(__file__).resolve().parent.parent / "results" / "recorded"
        write_atomic(folder / "density.md", lambda file: file.write(table.markdown().encode()))
        write_atomic(folder / "density.csv", lambda file: file.write(table.csv().encode()))


if __name__ == "__main__":
    main(sys.argv[1:])
