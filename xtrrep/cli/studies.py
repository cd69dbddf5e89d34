"""Verbs over many runs: analyses, the study's tables and claims, sweeps, the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from xtrrep.cli.options import DataId, DryRun, Index, Json, Overrides, Scale, app, merge
from xtrrep.cli.output import print_json, print_plan, relative
from xtrrep.cli.stages import set_threads_of
from xtrrep.console import DIFFER, MISSING, OK, DataError, UsageError, fail, say


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
    plan = pipeline.plan_analysis(merge(words, index=index, data=data, scale=scale))
    if dry_run:
        print_plan(plan.plans, json, ("analyze", plan.reuse, plan.folder))
        return
    preflight.require(plan.plans)
    set_threads_of(plan.plans)
    folder, done = pipeline.run_analysis(plan)
    if json:
        files = sorted(str(path) for path in folder.iterdir())
        print_json(
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
            print(relative(path))
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
    words = merge(overrides, scale=scale)
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
        print_plan([plan for plans, _ in found for plan in plans], json, calibration=calibration)
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
                    print(relative(path))
        if accept:
            try:
                say(f"accepted: {relative(making.accept(what, cells, extra))}")
            except DataError as error:  # the others are still to come
                refused = True
                fail(error)
    if json:
        print_json(described if name == study.ALL else described[0])
    if accept:
        raise typer.Exit(MISSING if refused else OK)
    raise typer.Exit(DIFFER if DIFFER in codes else max(codes))


@app.command()
def sweep(
    name: Annotated[str | None, typer.Argument(help="a file of configs/sweeps; --list names them")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="KEY=VALUE for every cell, e.g. scale=lab")] = None,
    scale: Scale = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="train every cell under each, e.g. 42,43,44")] = None,
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
    | xtrrep sweep claims --seeds 42,43,44
    """
    from xtrrep import study
    from xtrrep.sweep import cells, control, units
    from xtrrep.sweep import watch as watching

    if listing:
        for known in cells.names():
            print(f"{known:<12} {cells.load(known).title}")
        return
    if name is None or "=" in name:
        raise UsageError("`xtrrep sweep` needs a name", hint=f"one of: {', '.join(cells.names())}")
    asked = replace(cells.load(name), seeds=study.parse_seeds(seeds) if seeds is not None else ())
    plans, lacking = cells.plans(asked, merge(overrides, scale=scale))
    if dry_run:
        print_plan(list(plans.values()), json)
        for number, wave in enumerate(units.waves_of(plans.values()), start=1):
            say(f"wave {number}: {', '.join(f'{count} x {stage}' for stage, count in wave.items())}")
        for cell, reason in lacking.items():
            say(f"missing: {cell}: {reason}")
        return
    if watch and json:
        print_json(watching.standing(list(plans.values()), watching.foreseen(list(plans.values()))).as_json())
        return
    if watch:
        raise typer.Exit(watching.follow(name, list(plans.values()), every))
    failed = control.carry_out(asked, list(plans.values()), executor, jobs, memory)
    found = watching.cells(plans, lacking, failed)
    if json:
        print_json([{**row, "folder": row["folder"] and str(row["folder"])} for row in found])
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

    words = merge(overrides, data=data, scale=scale)
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
        print_plan(plans.all(), json)
        for name, reason in {**plans.claims, **{key[1]: reason for key, reason in plans.reasons.items()}}.items():
            say(f"not run: {name}: {reason}")
        return
    if accept:
        testing.check_accept(family, extra)
    folder, results, table = testing.run_claims(family, extra)
    if accept:
        say(f"accepted: {relative(testing.accept(folder, family, extra))}")
    if json:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        print_json({"folder": str(folder), "claims": rows, "notes": list(table.footer)})
    else:
        print(table.terminal())
        print(relative(folder / "table.csv"))
    raise typer.Exit(testing.status(results))


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
        print_json({"page": str(page), "files": sorted(str(path) for path in folder.rglob("*") if path.is_file())})
        return
    print(relative(page))
