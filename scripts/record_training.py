"""Record how every configuration trains and what it gains on held-out packages, over seeds, into results/recorded/.

    .venv/bin/python scripts/record_training.py I [SEED ...]
    .venv/bin/python scripts/record_training.py II [SEED]

Each seed sets the head, the order of the triples, the drawn negatives and the dropout. Setup (II) needs the teacher
(`make teacher`) and takes one seed where none is named. What exists is re-used, the rest is run, a seed at a time.
"""

from __future__ import annotations

import datetime
import platform
import sys
from pathlib import Path

import pandas
import torch

from xtrrep import pipeline
from xtrrep.artifacts import read_manifest, write_atomic
from xtrrep.config import compose
from xtrrep.measure.evaluate import read_by_query
from xtrrep.measure.significance import paired
from xtrrep.pipeline.identity import is_distilled, model_label, setting_of
from xtrrep.report.table import Table

MEASURE = "nDCG@10"
MODELS = {
    "I": ("colbert", "xtr_k64", "xtr_k128", "xtr_k256", "xtr_k512"),
    "II": ("colbert", "colbert_kd", "xtr_k128", "xtr_k128_kd", "xtr_multi", "xtr_multi_kd"),
}
SEEDS = {"I": (42, 43, 44), "II": (42,)}


def words_of(setup: str, name: str, seed: int) -> list[str]:
    return [
        f"setup={setup}", f"config={name}", f"train.seed={seed}", f"model.seed={seed}", f"distill.seed={seed}",
        f"data.measures=[{MEASURE}]",
    ]  # fmt: skip


def per_query(folder: Path) -> pandas.Series:
    scores = read_by_query(folder / "per_query.csv")
    return scores[MEASURE]


def rows_of(seed: int, models: list[tuple[str, str]]) -> list[list[object]]:
    plans = {}
    for setup, name in models:
        words = words_of(setup, name, seed)
        plans[setup, name] = pipeline.plan(compose(words), "evaluate")
        scoring = setting_of(plans[setup, name].cfg).scoring
        untrained = ["model.source=untrained", f"retrieve.scoring={scoring}", *words]
        plans["untrained", scoring] = pipeline.plan(compose(untrained), "evaluate")
    done = pipeline.run(list(plans.values()))
    folders = dict(zip(plans, done.folders, strict=True))
    rows: list[list[object]] = []
    for setup, name in models:
        cfg, made = plans[setup, name].cfg, folders[setup, name]
        base = per_query(folders["untrained", setting_of(cfg).scoring]["evaluate"])
        scores = per_query(made["evaluate"])
        facts = read_manifest(made["distill" if is_distilled(cfg) else "train"])["facts"]
        difference = paired(scores, base)
        temperature = f"{facts['temperature_first']:.4f} to {facts['temperature_last']:.4f}"
        verdict = "—" if facts["diverged_at"] is None else f"step {facts['diverged_at']}"
        rows.append(
            [model_label(cfg), seed, facts["loss_first"], facts["loss_last"], None if is_distilled(cfg) else
             facts["ln_pool"], temperature, verdict, float(base.mean()), float(scores.mean()), str(difference),
             difference.p, plans[setup, name].specs["retrieve"].fingerprint]
        )  # fmt: skip
    return rows


def main(setup: str, seeds: list[int]) -> None:
    rows: list[list[object]] = []
    for seed in seeds:
        rows += rows_of(seed, [(setup, name) for name in MODELS[setup]])
        write(rows, setup)


def write(rows: list[list[object]], setup: str) -> None:
    cfg = compose([])
    columns: list[object] = ["model", "seed", "loss first", "loss last", "ln(pool)", "temperature", "diverged"]
    columns += [f"{MEASURE} untrained", f"{MEASURE} trained", "trained - untrained [95 %]", "p", "run"]
    names = list(dict.fromkeys(str(row[0]) for row in rows))
    means = []
    for name in names:
        values = pandas.Series([float(str(row[8])) for row in rows if row[0] == name])
        spread = "" if len(values) < 2 else f" (sd {values.std():.4f}, {len(values)} seeds)"
        means.append(f"{name} {values.mean():.4f}{spread}")
    footer = [
        f"Recorded {datetime.date.today()} at scale={cfg.scale} on {platform.machine()}, no GPU, "
        f"{torch.get_num_threads()} threads, by scripts/record_training.py.",
        f"MiniLM trained on {cfg.train.data} ({cfg.train.steps} steps of {cfg.train.batch_size}; `_kd`: then "
        f"{cfg.distill.steps} steps of {cfg.distill.batch_size} x {cfg.distill.n_ways}), tested on {cfg.data.id}, "
        "packages held out of training; exact search, each model's own scoring.",
        "Losses are means of the first and the last tenth of the steps. The loss of distillation has no guess to stand "
        "beside. Paired over queries, bootstrap interval, two-sided sign-flip permutation p (10,000 resamples).",
        f"Mean {MEASURE} over seeds: " + "; ".join(means) + ".",
    ]
    table = Table(f"Training at demo scale, setup ({setup})", columns, rows, footer)
    folder = Path(__file__).resolve().parent.parent / "results" / "recorded"
    write_atomic(folder / f"training_{setup}.md", lambda file: file.write(table.markdown().encode()))
    write_atomic(folder / f"training_{setup}.csv", lambda file: file.write(table.csv().encode()))
    print(table.terminal())


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or words[0] not in MODELS or not all(word.isdigit() for word in words[1:]):
        raise SystemExit((__doc__ or "").strip())
    main(words[0], [int(word) for word in words[1:]] or list(SEEDS[words[0]]))
