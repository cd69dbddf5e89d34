"""The command line: one short function a verb. Heavy imports stay inside, so that --help answers at once."""

from __future__ import annotations

import io
import json as jsonlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from xtrrep import ranks
from xtrrep.console import (
    DIFFER,
    MISSING,
    OK,
    USAGE,
    DataError,
    UsageError,
    XtrrepError,
    fail,
    hush,
    machine_error,
    say,
)

if TYPE_CHECKING:
    from xtrrep.api import Result
    from xtrrep.pipeline import Plan

INTERRUPTED = 130  # what a shell expects after Ctrl-C
PLAN_LINES = 60  # steps that a dry run at scale=paper lists one by one, above its tables

HELP = """Experiments with multi-vector retrieval: ColBERT and XTR, trained, indexed and compared.

Every verb takes KEY=VALUE overrides of the configuration beside its options, runs the stages that are missing and
re-uses the rest. Defaults: config=xtr_k128 setup=I scale=demo data=pydoc/test index=exact protocol=stated.

Exit codes: 0 ok, 1 scores differ, 2 usage, 3 data, model or engine missing or broken.
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

Overrides = Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, e.g. config=colbert retrieve.k_prime=1000")]
Index = Annotated[
    str | None, typer.Option("--index", help="engine: exact, scann, plaid, warp, bm25, ... (same as index=NAME)")
]
DataId = Annotated[str | None, typer.Option("--data", help="collection id (same as data=ID)")]
ConfigName = Annotated[str | None, typer.Option("--config", help="colbert, xtr_k64, ... (same as config=NAME)")]
Scale = Annotated[str | None, typer.Option("--scale", help="demo or paper (same as scale=NAME)")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the plan: reuse, run, downloads, time; run nothing")]


def _merge(overrides: list[str] | None, **options: str | None) -> list[str]:
    return [*(overrides or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]


def _plans(overrides: Sequence[str], until: str) -> list[Plan]:
    from xtrrep import config, pipeline

    return [pipeline.plan(config.compose(overrides), until)]


def _print_json(value: Any) -> None:
    print(jsonlib.dumps(value, indent=1, ensure_ascii=False))


def _print_plan(
    plans: Sequence[Plan],
    json: bool,
    final: tuple[str, bool, Path] | None = None,
    calibration: Path | None = None,
) -> None:
    from xtrrep import cost, preflight

    lines = preflight.forecast(plans)
    if final is not None:
        stage, reuse, folder = final
        lines.append(preflight.Forecast(stage, "reuse" if reuse else "run", folder, "", 0.0 if reuse else None, ""))
    fetch = preflight.downloads(plans)
    problems = preflight.missing(plans)
    paper = any(plan.cfg.scale == "paper" for plan in plans)
    if calibration is not None and not paper:
        raise UsageError("--calibration changes only plans at scale=paper", hint="add scale=paper, or leave it out")
    costs = cost.cost(plans, cost.calibration(calibration)) if paper else None
    todo = [line for line in lines if line.action == "run"]
    known = sum(line.seconds or 0.0 for line in todo)
    unknown = sum(line.seconds is None for line in todo)
    if json:
        _print_json(
            {
                "steps": [{**vars(line), "folder": str(line.folder)} for line in lines],
                "run": len(todo),
                "reuse": len(lines) - len(todo),
                "downloads_mb": fetch,
                "seconds": known,
                "steps_of_unknown_time": unknown,
                "missing": problems,
                **({"cost": costs.as_json()} if costs else {}),
            }
        )
        return
    for line in lines if len(lines) <= PLAN_LINES or costs is None else ():
        told = line.action == "reuse" or (costs and line.seconds is None)  # by the tables below
        time = "" if told else f"{preflight.duration(line.seconds)} {line.source}".strip()
        print(f"{line.action:<6} {line.stage:<10} {line.units:<24} {time:<26} {_relative(line.folder)}")
    counted = f"{len(todo)} to run, {len(lines) - len(todo)} re-used"
    if costs:
        for table in costs.tables():
            print(table.terminal(), end="\n\n")
        print(f"{counted}; --json lists every step")
    else:
        for name, size in fetch.items():
            print(f"fetch  {name}  {f'{size:,} MB' if size else 'size not known'}")
        times = [f"about {preflight.duration(known)}"] if known or not unknown else []
        times += [f"{unknown} of unknown time"] if unknown else []
        print(f"{counted}; {', and '.join(times)}")
    for problem in problems:
        print(f"missing: {problem}")


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _writable(out: Path) -> Path:
    """A file to write, `~` expanded. Raises DataError where its folder is not there, UsageError for a folder."""
    out = out.expanduser()
    if out.is_dir():
        raise UsageError(f"{out} is a folder", hint=f"--out {out / 'NAME'}")
    if not out.parent.is_dir():
        raise DataError(f"there is no folder {out.parent}", hint=f"mkdir -p {out.parent}")
    return out


def _threads(plans: Sequence[Plan]) -> None:
    from xtrrep.api import set_threads

    set_threads(plans[0].cfg.machine.threads)


def _work(overrides: Sequence[str], until: str, json: bool, dry_run: bool) -> Result | None:
    """Plan, check and run up to a stage; None after a dry run."""
    if dry_run:
        _print_plan(_plans(overrides, until), json)
        return None
    from xtrrep.api import run_config

    return run_config(*overrides, until=until)


def _summary(result: Result) -> dict[str, Any]:
    return {
        "stage": result.final,
        "folder": str(result.folder),
        "fingerprint": result.plan.specs[result.final].fingerprint,
        "ran": [str(path) for path in result.ran],
        "reused": [str(path) for path in result.reused],
        "facts": result.facts,
    }


def _finish(result: Result | None, json: bool) -> None:
    if result is None:
        return
    if json:
        _print_json(_summary(result))
        return
    say(f"{len(result.ran)} stages run, {len(result.reused)} re-used")
    print(_relative(result.folder))
    for key, value in result.facts.items():
        if key not in ("units", "measures"):
            print(f"  {key:<24} {value}")


def _verb(until: str, overrides: list[str], json: bool, dry_run: bool) -> None:
    _finish(_work(overrides, until, json, dry_run), json)


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    scale: Scale = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Train a model; the same command continues an interrupted run.

    Examples: xtrrep train config=xtr_k128 | xtrrep train setup=II config=xtr_k256 stage=kd
    """
    _verb("train", _merge(overrides, config=config, scale=scale), json, dry_run)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="where to; it must not exist yet, or be empty")],
    overrides: Overrides = None,
    config: ConfigName = None,
    scale: Scale = None,
    json: Json = False,
) -> None:
    """Copy a trained model to FOLDER with a model card: settings, temperature, every score measured here.

    Example: xtrrep export my-xtr config=xtr_k128
    """
    from xtrrep import config as configs
    from xtrrep.export import check, export

    words, folder = _merge(overrides, config=config, scale=scale), folder.expanduser()
    check(configs.compose(words), folder)  # before anything is trained
    result = _work(words, "train", json=False, dry_run=False)
    if result is None:
        return
    scores = export(result.plan, result.folder, folder)
    if json:
        _print_json({"folder": str(folder), "fingerprint": _summary(result)["fingerprint"], "scores": scores})
        return
    print(_relative(folder))
    say(f"{len(scores)} measured scores in its card; MultiVectorEncoder({str(folder)!r}) loads it")


@app.command()
def encode(
    overrides: Overrides = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Encode a collection's documents into an embedding store.

    Example: xtrrep encode config=colbert data=beir/nfcorpus/test
    """
    _verb("documents", _merge(overrides, data=data, config=config, scale=scale), json, dry_run)


@app.command()
def index(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Build an engine's index.

    Example: xtrrep index --index scann index.num_leaves=500
    """
    _verb("index", _merge(overrides, index=index, data=data, config=config, scale=scale), json, dry_run)


@app.command()
def retrieve(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    out: Annotated[Path | None, typer.Option("--out", help="copy the run file to here")] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Rank documents for every judged query: a TREC run file.

    Examples: xtrrep retrieve config=colbert retrieve.scoring=xtr retrieve.k_prime=1000 | xtrrep retrieve --index bm25
    --out bm25.trec
    """
    words = _merge(overrides, index=index, data=data, config=config, scale=scale)
    if out is not None:
        out = _writable(out)  # before anything is run
    result = _work(words, "retrieve", json, dry_run)
    if result is not None and out is not None:
        from xtrrep.artifacts import write_atomic

        found = (result.folder / "run.trec").read_bytes()
        write_atomic(out, lambda file: file.write(found))
    _finish(result, json)


@app.command()
def evaluate(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="a TREC run file made elsewhere, scored as it is: no model, no index")
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Score a run by ir-measures names (alias: eval).

    Examples: xtrrep eval --index scann | xtrrep eval config=colbert retrieve.k_prime=1000 'data.measures=[nDCG@10,P@5]'
    | xtrrep eval --run bm25.trec | xtrrep eval retrieve.from_run=bm25.trec (its documents re-ranked by MaxSim)
    """
    words = _merge(overrides, index=index, data=data, config=config, scale=scale)
    if run is not None:
        words += [f"retrieve.from_run={run}", "retrieve.scoring=run"]
    result = _work(words, "evaluate", json, dry_run)
    if result is None:
        return
    measures = result.facts["measures"]
    run_file = result.folders["retrieve"] / "run.trec"
    if json:
        _print_json({**_summary(result), "measures": measures, "run": str(run_file)})
        return
    from xtrrep import meaning
    from xtrrep.evaluate import canonical
    from xtrrep.report.table import Table

    cfg = result.plan.cfg
    setting = meaning.setting_of(cfg)
    names = list(cfg.data.measures)
    engine, model = meaning.engine_label(cfg), meaning.needs_model(cfg)
    row: list[object] = [meaning.model_label(cfg) if model else engine, setting.scoring if model else None]
    row += [setting.k_prime, *(float(measures[canonical(name)]) for name in names)]
    say(f"{len(result.ran)} stages run, {len(result.reused)} re-used")
    footer = [
        f"scale={cfg.scale}, protocol={cfg.protocol.name}, {result.facts['units']['queries']} queries",
        *([f"the best {setting.rerank} re-ranked by MaxSim"] if setting.rerank else []),
        f"run file   {_relative(run_file)}",
        f"per query  {_relative(result.folder / 'per_query.csv')}",
    ]
    title = f"{cfg.data.id}, index={engine}"
    print(Table(title, ["model", "scoring", "k'", *names], [row], footer).terminal())


app.command("eval", hidden=True, help="Alias of evaluate.")(evaluate)


@app.command()
def latency(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Measure how long a query takes: a fresh process, threads fixed, one query at a time.

    Examples: xtrrep latency --index warp latency.threads=2 | xtrrep latency --index plaid latency.recipe=paper
    """
    result = _work(_merge(overrides, index=index, data=data, config=config, scale=scale), "latency", json, dry_run)
    if result is None:
        return
    if json:
        _print_json(_summary(result))
        return
    from xtrrep.meaning import model_label
    from xtrrep.report.table import Table

    cfg, facts = result.plan.cfg, result.facts
    columns, row = ["model", "queries/s"], [model_label(cfg), float(facts["qps"])]
    for name in ("p50", "p90", "p99"):
        if name in facts:
            columns.append(f"{name}, ms")
            row.append(1000 * facts[name])
    for name, seconds in facts.get("steps", {}).items():
        columns.append(f"{name}, ms")
        row.append(1000 * seconds)
    say(f"{len(result.ran)} stages run, {len(result.reused)} re-used")
    wall = f", CPU time {facts['cpu_per_wall']:.2f} of wall time" if "cpu_per_wall" in facts else ""
    footer = [
        f"recipe={facts['recipe']}, {facts['queries']} queries, {facts['threads']} threads{wall}; {facts['processor']}",
        "Times compare within one machine and hour only; put what you compare side by side.",
        _relative(result.folder / "latency.csv"),
    ]
    print(Table(f"{cfg.data.id}, index={cfg.index['engine']}", columns, [row], footer, digits=2).terminal())


@app.command()
def analyze(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="an analysis by name (k_prime; see `xtrrep ls`), and KEY=VALUE overrides")
    ] = None,
    index: Index = None,
    data: DataId = None,
    scale: Scale = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run an analysis over many models and settings: a table and a figure.

    Examples: xtrrep analyze | xtrrep analyze engines | xtrrep analyze 'analyze.models=[colbert,xtr_k64]'
    """
    from xtrrep import pipeline, preflight

    words = overrides or []
    if words and "=" not in words[0]:
        words = [f"analyze.name={words[0]}", *words[1:]]
    plan = pipeline.plan_analysis(_merge(words, index=index, data=data, scale=scale))
    if dry_run:
        _print_plan(plan.plans, json, ("analyze", plan.reuse, plan.folder))
        return
    preflight.require(plan.plans)
    _threads(plan.plans)
    folder, done = pipeline.run_analysis(plan)
    if json:
        files = sorted(str(path) for path in folder.iterdir())
        _print_json(
            {
                "folder": str(folder),
                "files": files,
                "ran": list(map(str, done.ran)),
                "reused": list(map(str, done.reused)),
            }
        )
        return
    print((folder / "table.txt").read_text(encoding="utf-8"))
    for path in sorted(folder.iterdir()):
        if path.suffix in (".png", ".svg", ".pdf", ".md", ".csv"):
            print(_relative(path))
    say(f"{len(done.ran)} stages run, {len(done.reused)} re-used")


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="a table, figure or stated result; --list names them")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, e.g. scale=paper protocol=released")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="a collection's columns, or an analysis' cells of a name; may be given again"),
    ] = None,
    scale: Scale = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="train under each, e.g. 42,43,44; cells are their means")
    ] = None,
    accept: Annotated[bool, typer.Option("--accept", help="record what came out as what is expected here")] = False,
    listing: Annotated[bool, typer.Option("--list", help="list the reproductions")] = False,
    show: Annotated[bool, typer.Option("--show", help="the cells and the paper's values; run nothing")] = False,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="for --dry-run: another machine's, a file of xtrrep calibrate")
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Make a table, figure or stated result of the study again and compare it, cell by cell.

    Exit 0 agrees, 1 differs, 3 incomplete.

    Examples: xtrrep reproduce table3 | xtrrep reproduce table1 --only nfcorpus scale=paper model.source=released
    """
    from xtrrep import reproduce as making
    from xtrrep import study

    if listing:
        for known in study.names():
            print(f"{known:<12} {study.load(known, 'paper').title}")
        return
    if name is None or "=" in name:
        raise UsageError("`xtrrep reproduce` needs a name", hint=f"all, or one of: {', '.join(study.names())}")
    if accept and (dry_run or show):
        raise UsageError("--accept records what was run, and nothing is", hint="leave out --dry-run and --show")
    if calibration is not None and not dry_run:
        raise UsageError("--calibration changes only a plan, and this is none", hint="add --dry-run")
    words = _merge(overrides, scale=scale)
    chosen = [word.removeprefix("scale=") for word in words if word.startswith("scale=")]
    extra = [word for word in words if not word.startswith("scale=")]
    trained = study.parse_seeds(seeds) if seeds is not None else ()
    defined = study.load_all(name, chosen[-1] if chosen else "demo", only or ())
    wanted = [replace(what, seeds=trained) for what in defined]
    if show:
        for what in wanted:
            cells = making.judge(what, {}, making.accepted_with(what, extra))
            print(making.table(what, cells, ["Nothing was run."]).terminal())
        return
    if dry_run:
        found = [making.plans(what, extra) for what in wanted]
        _print_plan([plan for plans, _ in found for plan in plans], json, calibration=calibration)
        for reason in (reason for _, reasons in found for reason in reasons):
            say(f"missing: {reason}")
        return
    for what in wanted if accept else ():
        making.check_accept(what, extra)
    codes, described, refused = [], [], False
    for what in wanted:
        folder, cells, table = making.reproduce(what, extra)
        codes.append(making.status(cells))
        described.append({"name": what.name, "folder": str(folder), "cells": [vars(cell) for cell in cells]})
        if not json:
            if (folder / "grid.txt").exists():
                print((folder / "grid.txt").read_text(encoding="utf-8"))
            print(table.terminal())
            for path in sorted(folder.iterdir()):
                if path.suffix in (".png", ".svg", ".pdf", ".csv"):
                    print(_relative(path))
        if accept:
            try:
                say(f"accepted: {_relative(making.accept(what, cells, extra))}")
            except DataError as error:  # the others are still to come
                refused = True
                fail(error)
    if json:
        _print_json(described if name == study.ALL else described[0])
    if accept:
        raise typer.Exit(MISSING if refused else OK)
    raise typer.Exit(DIFFER if DIFFER in codes else max(codes))


@app.command()
def sweep(
    name: Annotated[str | None, typer.Argument(help="a file of configs/sweeps; --list names them")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE for every cell, e.g. scale=lab")] = None,
    scale: Scale = None,
    executor: Annotated[
        str,
        typer.Option("--executor", help="process: workers here; slurm: arrays through submitit; local: its jobs here"),
    ] = "process",
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="workers here at a time (a fourth of the cores)")
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", min=0.1, help="GB that they may take together (80 % of what is free)")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="show how it stands until it is complete; run nothing")
    ] = False,
    every: Annotated[float, typer.Option("--every", min=0.2, help="seconds between two looks of --watch")] = 5.0,
    listing: Annotated[bool, typer.Option("--list", help="list the sweeps")] = False,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run many cells, here or on SLURM: what they share once, what exists not at all.

    Stopped, it goes on when run again. Exit 0 all complete, 3 not. --watch --json says once how it stands.

    Examples: xtrrep sweep demo --jobs 2 | xtrrep sweep table3 scale=paper --executor slurm | xtrrep sweep demo --watch
    """
    from xtrrep.sweep import cells, control, units
    from xtrrep.sweep import watch as watching

    if listing:
        for known in cells.names():
            print(f"{known:<12} {cells.load(known).title}")
        return
    if name is None or "=" in name:
        raise UsageError("`xtrrep sweep` needs a name", hint=f"one of: {', '.join(cells.names())}")
    asked = cells.load(name)
    plans, lacking = cells.plans(asked, _merge(overrides, scale=scale))
    if dry_run:
        _print_plan(list(plans.values()), json)
        for number, wave in enumerate(units.waves_of(plans.values()), start=1):
            say(f"wave {number}: {', '.join(f'{count} x {stage}' for stage, count in wave.items())}")
        for cell, reason in lacking.items():
            say(f"missing: {cell}: {reason}")
        return
    if watch and json:
        _print_json(watching.standing(list(plans.values()), watching.foreseen(list(plans.values()))).as_json())
        return
    if watch:
        raise typer.Exit(watching.follow(name, list(plans.values()), every))
    failed = control.carry_out(asked, list(plans.values()), executor, jobs, memory)
    found = watching.cells(plans, lacking, failed)
    if json:
        _print_json([{**row, "folder": row["folder"] and str(row["folder"])} for row in found])
    else:
        print(watching.cells_table(asked.title, found).terminal())
    raise typer.Exit(watching.status(found))


@app.command()
def claims(
    overrides: Overrides = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="a claim's id; may be given again")] = None,
    data: DataId = None,
    scale: Scale = None,
    accept: Annotated[bool, typer.Option("--accept", help="record what came out in results/recorded/claims")] = False,
    listing: Annotated[bool, typer.Option("--list", help="list the claims and where the study makes them")] = False,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Test the study's statements on runs of our own: effect, interval, p, verdict. Exit 0, or 3 where none could run.

    Examples: xtrrep claims --only colbert_keeps_quality | xtrrep claims 'claims.seeds=[42,43,44]' --dry-run
    """
    from xtrrep import claims as testing

    words = _merge(overrides, data=data, scale=scale)
    chosen = [word.removeprefix("scale=") for word in words if word.startswith("scale=")]
    if accept and (dry_run or listing):
        raise UsageError("--accept records what was run, and nothing is", hint="leave out --dry-run and --list")
    if accept and only:
        raise UsageError("--accept records the whole family, whose tests are corrected together", hint="without --only")
    family = testing.load(chosen[-1] if chosen else "demo", only or ())
    extra = [word for word in words if not word.startswith("scale=")]
    if listing:
        width = max(len(claim.id) for claim in family.claims)
        for claim in family.claims:
            print(f"{claim.id:<{width}}  {claim.says} ({claim.where})")
        return
    if dry_run:
        plans = testing.plan(family, testing.base_config(family, extra), extra, require=False)
        _print_plan(plans.all(), json)
        for name, reason in {**plans.claims, **{key[1]: reason for key, reason in plans.reasons.items()}}.items():
            say(f"not run: {name}: {reason}")
        return
    if accept:
        testing.check_accept(family, extra)
    folder, results, table = testing.run_claims(family, extra)
    if accept:
        say(f"accepted: {_relative(testing.accept(folder, family, extra))}")
    if json:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        _print_json({"folder": str(folder), "claims": rows, "notes": list(table.footer)})
    else:
        print(table.terminal())
        print(_relative(folder / "table.csv"))
    raise typer.Exit(testing.status(results))


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="the query, in quotes")],
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="documents to print (5)")] = None,
    json: Json = False,
) -> None:
    """Search a collection for a typed query: the best documents with score and text.

    Example: xtrrep search "shortest path between two nodes" --top 3
    """
    from xtrrep import pipeline, preflight
    from xtrrep import query as typed

    typed.check_query(query)
    words = _merge(overrides, index=index, data=data, config=config, scale=scale)
    if top is not None or not any(word.startswith("retrieve.top_k=") for word in words):
        words.append(f"retrieve.top_k={top or 5}")
    plans = _plans(words, "index")
    preflight.require(plans)
    _threads(plans)
    done = pipeline.run(plans)
    found = typed.search(plans[0], done.folders[0], query)
    if json:
        _print_json({"query": query, "documents": [{"id": d, "score": s, "text": t} for d, s, t in found]})
        return
    for rank, (document, score, text) in enumerate(found, start=1):
        print(f"{rank:>2}. {score:.4f}  {document}")
        print(f"    {' '.join(text.split())[:300]}")
    if not found:
        say("nothing found")


@app.command()
def explain(
    query: Annotated[str, typer.Argument(help="the query, in quotes")],
    doc: Annotated[str, typer.Option("--doc", help="a document's id, as `xtrrep search` prints it")],
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="write the page with the heat map here too: FILE.html")
    ] = None,
    json: Json = False,
) -> None:
    """Show why a document scores what it scores for a typed query: token by token, under XTR and MaxSim.

    The page with the heat map is kept for `xtrrep report`.

    Examples: xtrrep explain "a random graph" --doc networkx.algorithms.smallworld:random_reference | the same with
    retrieve.k_prime=100 retrieve.imputation=mean --out why.html
    """
    from xtrrep import config as configs
    from xtrrep import pipeline, preflight
    from xtrrep import query as typed

    typed.check_query(query)
    words = _merge(overrides, index=index, data=data, config=config, scale=scale)
    plans = _plans(words, "index")
    typed.check_explainable(plans[0].cfg)
    if out is not None:
        out = _writable(out)
    preflight.require(plans)
    _threads(plans)
    corpus = pipeline.run(_plans(words, "data"))
    typed.document_text(plans[0].cfg, corpus.folders[0], doc)  # a mistyped id is said before anything is trained
    done = pipeline.run(plans)
    found = typed.explain(plans[0], done.folders[0], query, doc)
    from xtrrep import explain as explaining

    page = explaining.save(found, plans[0].specs["index"], configs.results_root()) / "page.html"
    say(f"wrote {_relative(page)}")
    if out is not None:
        from xtrrep.artifacts import write_atomic

        write_atomic(out, lambda file: file.write(page.read_bytes()))
        say(f"wrote {_relative(out)}")
    if json:
        _print_json(explaining.as_json(found))
        return
    print(explaining.table(found).terminal())
    print(f"\n{' '.join(found.text.split())[:300]}")


@app.command()
def report(
    out: Annotated[
        Path | None, typer.Option("--out", help="the folder to make, or to bring up to date (results/runs/report)")
    ] = None,
    json: Json = False,
) -> None:
    """Put everything finished (reproductions, claims, analyses, explanations) and recorded into one static folder.

    Example: xtrrep report --out my-report
    """
    from xtrrep import config
    from xtrrep.report import html

    folder = (out or config.results_root() / "report").expanduser()
    page = html.write(config.results_root(), config.recorded_root(), folder)
    if json:
        _print_json({"page": str(page), "files": sorted(str(path) for path in folder.rglob("*") if path.is_file())})
        return
    print(_relative(page))


@app.command()
def ls(json: Json = False) -> None:
    """List configs, collections, engines, analyses and artifacts."""
    from xtrrep import artifacts, config
    from xtrrep.analyze import analyses
    from xtrrep.index import engines
    from xtrrep.scoring.imputation import imputations

    listing: dict[str, list[dict[str, str]]] = {
        group: [{"name": name} for name in config.options(group)] for group in config.GROUPS
    }
    listing["engine"] = [{"name": n, "summary": e.summary, "paper": e.paper} for n, e in engines.entries().items()]
    listing["imputation"] = [{"name": n, "summary": e.summary} for n, e in imputations.entries().items()]
    listing["analysis"] = [{"name": n, "summary": e.summary} for n, e in analyses.entries().items()]
    listing["artifact"] = []
    for root in (config.artifacts_root(), config.results_root()):
        for folder, manifest in artifacts.complete(root):
            size = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
            summary = f"{manifest['made']}  {manifest['seconds']:,.0f} s  {size:,.1f} MB"
            listing["artifact"].append({"name": _relative(folder), "summary": summary})
    if json:
        _print_json(listing)
        return
    for kind, entries in listing.items():
        print(f"{kind}:" if entries else f"{kind}: none yet")
        for entry in entries:
            print(
                "  "
                + "  ".join(filter(None, [f"{entry['name']:<28}", entry.get("summary"), entry.get("paper")])).rstrip()
            )


What = Annotated[
    str | None, typer.Argument(help="a stage, a label, a folder's name, or how a fingerprint begins; without it, all")
]


@app.command()
def verify(what: What = None, json: Json = False) -> None:
    """Read every file of the artifacts in full and compare it with its manifest.

    A command that reads an artifact checks it anyway: sizes, both ends of large files, and the whole of what is small
    or was changed since it was last read. This reads all of everything. Exit 0 all fine, 3 something is not.

    Examples: xtrrep verify | xtrrep verify index | xtrrep verify 3f9c
    """
    from xtrrep import verify as verifying
    from xtrrep.report.table import Table

    verdicts = verifying.verify(what)
    wrong = [verdict for verdict in verdicts if verdict.faults]
    if json:
        _print_json([{**vars(v), "folder": str(v.folder), "fine": not v.faults} for v in verdicts])
    else:
        rows: list[list[object]] = [
            [f"{v.folder.parent.name}/{v.folder.name}", v.files, v.bytes / 1e6, "BROKEN" if v.faults else "fine"]
            for v in verdicts
        ]
        footer = [fault for verdict in wrong for fault in verdict.faults]
        footer += [f"hint: rm -r {verdict.folder} and run again to rebuild it" for verdict in wrong]
        footer.append(f"{len(verdicts)} artifacts, {len(wrong)} broken")
        print(Table("Artifacts", ["artifact", "files", "MB", "found"], rows, footer, digits=2).terminal())
    raise typer.Exit(verifying.status(verdicts))


@app.command()
def gc(
    what: What = None,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without this nothing is removed")] = False,
    json: Json = False,
) -> None:
    """Show what no result needs and what it weighs; with --yes remove it.

    Kept are finished evaluations, latencies, analyses, reproductions and claims, whatever a file of results/recorded
    cites, and all that these were made from. The rest is a model that was never evaluated, an index that was only
    searched, a run interrupted more than a day ago: it can be made again.

    Examples: xtrrep gc | xtrrep gc index | xtrrep gc --yes
    """
    from xtrrep import gc as collecting
    from xtrrep.report.table import Table

    waste = collecting.remove(what) if yes else collecting.find(what)
    total = sum(item.bytes for item in waste)
    if json:
        _print_json({"waste": [{**vars(w), "path": str(w.path)} for w in waste], "bytes": total, "removed": yes})
        return
    rows: list[list[object]] = [[w.stage, w.label, w.bytes / 1e6, w.age / 86400, w.why] for w in waste if w.is_folder]
    if not waste:
        say("there is nothing that is not needed")
        return
    footer = [f"{len(waste) - len(rows)} lock files and records of hashes that serve nothing any more"]
    footer += [f"{total / 1e6:,.1f} MB {'removed' if yes else 'that nothing needs; xtrrep gc --yes removes it'}"]
    print(Table("Not needed", ["stage", "label", "MB", "days old", "why"], rows, footer, digits=2).terminal())


@app.command()
def show(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    json: Json = False,
) -> None:
    """Show the composed config, what set each value, and the fingerprints of every stage it leads to.

    Example: xtrrep show config=colbert scale=paper
    """
    from xtrrep import config as configs
    from xtrrep import pipeline

    cfg, origins = configs.compose_with_origins(_merge(overrides, index=index, data=data, config=config, scale=scale))
    values = configs.flat(cfg)
    prints = {step.stage.name: step.spec.fingerprint for step in pipeline.plan(cfg, "evaluate").steps}
    if json:
        _print_json({"config": values, "origins": origins, "fingerprints": prints})
        return
    width = max(map(len, values))
    for key, value in values.items():
        print(f"{key:<{width}}  {jsonlib.dumps(value):<34} {origins.get(key, '')}")
    print()
    for name, fingerprint in prints.items():
        print(f"fingerprint {name:<12} {fingerprint}")


@app.command()
def calibrate(overrides: Overrides = None, scale: Scale = None, json: Json = False) -> None:
    """Measure this machine for the hours that a dry run at scale=paper shows: a training step, encoding, clustering and
    exact search, with `model.backbone`, whatever `model.source` says. It takes a minute or two.

    Example: xtrrep calibrate setup=II scale=paper
    """
    from xtrrep import calibrate as calibrating
    from xtrrep import config as configs

    path, found = calibrating.calibrate(configs.compose(_merge(overrides, scale=scale)))
    if json:
        _print_json(found)
        return
    for kind, rate in found["rates"].items():
        print(f"{kind:<8} {rate / 1e12:>10.4f} TFLOP/s   {found['measured'][kind]}")
    print(_relative(path))


@app.command()
def doctor(json: Json = False) -> None:
    """Check Python, torch, GPU, engines, weights, disk and network, and name the fix for each fault."""
    from xtrrep import preflight

    rows = preflight.doctor()
    if json:
        _print_json([dict(zip(("what", "fine", "finding", "fix"), row, strict=True)) for row in rows])
    else:
        for what, fine, finding, fix in rows:
            mark = {True: "ok  ", False: "FAIL", None: "note"}[fine]
            print(f"{mark} {what:<36} {finding}" + (f"   hint: {fix}" if fine is not True and fix else ""))
    if any(fine is False for _, fine, _, _ in rows):
        raise typer.Exit(3)


def main() -> None:
    """Entry point: every foreseen error becomes one line, a hint and the documented exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without "—" still gets its table
    if ranks.asked() > 1:
        signal.signal(signal.SIGTERM, _ended)
        if ranks.number() > 0:
            hush()
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    sys.exit(_run(sys.argv[1:]))


def _ended(signum: int, frame: Any) -> None:
    """torchrun ends all processes when one of them does."""
    say("error: ended from outside, as torchrun does when another process of the training failed or was killed")
    say("hint: the same command continues from the last checkpoint")
    os._exit(128 + signum)


def _run(words: list[str]) -> int:
    if ranks.asked() > 1 and words[:1] != ["train"]:
        return fail(
            UsageError("only `xtrrep train` runs in several processes", hint="the same command without torchrun")
        )
    try:
        code = app(words, standalone_mode=False)
    except XtrrepError as error:
        return fail(error)
    except TyperException as error:
        return _fail_usage(error)
    except typer.Abort:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if explained := machine_error(error):
            return fail(explained)
        if not isinstance(error, OSError):
            raise
        where = f" ({error.filename})" if error.filename else ""
        return fail(DataError(f"{error.strerror or error}{where}", hint="`xtrrep doctor` checks disk and permissions"))
    if code == INTERRUPTED:
        say("interrupted: the same command continues where it can")
    return code if isinstance(code, int) else OK


def _fail_usage(error: Any) -> int:
    if not sys.argv[1:] or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return USAGE
    path = error.ctx.command_path if getattr(error, "ctx", None) else "xtrrep"
    return fail(UsageError(" ".join(error.format_message().split()), hint=f"{path} --help"))


if __name__ == "__main__":
    main()
