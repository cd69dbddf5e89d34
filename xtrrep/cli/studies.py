"""Verbs over many runs: analyses and your own grids, the study's tables and claims, the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xtrrep.cli.options import (
    Accept,
    ConfigName,
    DataId,
    DryRun,
    Index,
    Jobs,
    Json,
    Listing,
    Memory,
    On,
    Only,
    Overrides,
    Scale,
    Seeds,
    Verbose,
    app,
    merge,
)
from xtrrep.cli.output import print_json, print_plan, relative
from xtrrep.console import DIFFER, MISSING, OK, DataError, UsageError, fail, say, suggest

if TYPE_CHECKING:
    from xtrrep.experiments.definition import Experiment
    from xtrrep.experiments.execute import Where

EXIT = {"ok": OK, "differs": DIFFER, "missing": MISSING}


@dataclass(frozen=True)
class _How:
    """The options that mean the same in every verb of this file."""

    scale: str
    overrides: dict[str, str]  # without scale
    seeds: tuple[int, ...]
    where: Where
    dry_run: bool
    accept: bool
    json: bool
    calibration: Path | None = None
    verbose: bool = False


def _how(
    texts: Sequence[str],
    seeds: str | None,
    place: tuple[int | None, str | None, float | None],
    dry_run: bool,
    accept: bool,
    json: bool,
    verbose: bool,
    calibration: Path | None = None,
) -> _How:
    from xtrrep.experiments.cell import parse_overrides, parse_seeds
    from xtrrep.experiments.execute import Where

    if accept and dry_run:
        raise UsageError("--accept records what was run, and nothing is", hint="leave out --dry-run")
    if calibration is not None and not dry_run:
        raise UsageError("--calibration changes only a plan, and this is none", hint="add --dry-run")
    overrides = parse_overrides(texts)
    scale = overrides.pop("scale", "demo")
    trained = parse_seeds(seeds) if seeds is not None else ()
    return _How(scale, overrides, trained, Where(*place), dry_run, accept, json, calibration, verbose)


def _carry_out(experiments: Sequence[Experiment], how: _How, *, several: bool = False) -> None:
    """Plan, run, show and record experiments. Ends with the exit code of the worst of them."""
    from xtrrep.experiments.findings import findings
    from xtrrep.experiments.planning import plan
    from xtrrep.experiments.record import accept, check_acceptable, save
    from xtrrep.experiments.run import run
    from xtrrep.experiments.tables import status, tables

    experiments = [replace(experiment, seeds=how.seeds) for experiment in experiments]
    if how.dry_run:
        planned = [plan(experiment, how.overrides) for experiment in experiments]
        every = [part for plans in planned for part in plans.all()]
        print_plan(every, how.json, calibration=how.calibration, verbose=how.verbose)
        for reason in dict.fromkeys(reason for plans in planned for reason in plans.reasons()):
            say(f"not run: {reason}")
        return
    for experiment in experiments if how.accept else ():
        check_acceptable(experiment, how.overrides)
    codes, described, refused = [], [], False
    for experiment in experiments:
        result, pictures = run(experiment, how.overrides, where=how.where)
        folder = save(result, pictures)
        codes.append(EXIT[status(result)])
        described.append({"folder": str(folder), **result.as_json()})
        if not how.json:
            said = findings(result)
            for name, table in tables(result).items():
                if how.verbose or not (said and name == "differences"):
                    print(table.terminal(), end="\n\n")
            if said:
                print("\n".join([*said, "-v prints every difference."]), end="\n\n")
            _print_files(folder)
        if how.accept:
            try:
                say(f"accepted: {relative(accept(experiment, result, pictures))}")
            except DataError as error:  # the others are still to come
                refused = True
                fail(error)
    if how.json:
        print_json(described if several else described[0])
    if how.accept:
        raise typer.Exit(MISSING if refused else OK)
    raise typer.Exit(DIFFER if DIFFER in codes else max(codes))


def _print_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix in (".png", ".svg", ".pdf", ".md", ".csv"):
            print(relative(path))


@app.command()
def analyze(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="an analysis by name (k_prime; see `xtrrep ls`) or a grid (FILE.yaml), and KEY=VALUE"),
    ] = None,
    index: Index = None,
    data: DataId = None,
    scale: Scale = None,
    only: Only = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    on: On = None,
    memory: Memory = None,
    accept: Accept = False,
    json: Json = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Run an analysis over many models and settings, or a grid of your own: tables and figures.

    Examples: xtrrep analyze | xtrrep analyze engines | xtrrep analyze my_grid.yaml --jobs 2 | xtrrep analyze
    'analyze.models=[colbert,xtr_k64]'
    """
    from xtrrep.config import Analyze
    from xtrrep.experiments import definition
    from xtrrep.experiments.analyses import analyses

    given = overrides or []
    name = given[0] if given and "=" not in given[0] else None
    texts = merge(given[1:] if name else given, index=index, data=data, scale=scale)
    how = _how(texts, seeds, (jobs, on, memory), dry_run, accept, json, verbose)
    if name is not None and name.endswith((".yaml", ".yml")):
        _carry_out([definition.load_own(Path(name).expanduser(), how.scale, only or (), how.overrides)], how)
        return
    chosen = name or how.overrides.get("analyze.name") or Analyze().name
    of_runs = definition.analyses_by_name()
    if chosen in of_runs:
        rest = {key: value for key, value in how.overrides.items() if key != "analyze.name"}
        _carry_out([definition.load_analysis(chosen, how.scale, rest, only or ())], replace(how, overrides=rest))
        return
    if chosen not in analyses.entries():
        hint = suggest(chosen, [*of_runs, *analyses.entries()])
        raise DataError(f"no analysis named {chosen!r} in this version", hint=hint)
    for option, value in (("--only", only), ("--accept", accept)):
        if value:
            raise UsageError(
                f"{option} is for analyses of runs ({', '.join(of_runs)}) and grids, and {chosen} reads vectors",
                hint="leave it out",
            )
    _analyze(chosen, how)


def _analyze(name: str, how: _How) -> None:
    """An analysis that reads vectors, under each training seed."""
    from xtrrep.api import set_threads
    from xtrrep.experiments.analysis import plan_analysis, run_analysis
    from xtrrep.experiments.cell import check_seeds
    from xtrrep.experiments.execute import run_plans
    from xtrrep.plan import preflight

    own = {"scale": how.scale, **how.overrides, "analyze.name": name}
    check_seeds(how.seeds, own)
    made = [plan_analysis(own, seed) for seed in how.seeds or (None,)]
    plans = [plan for one in made for plan in one.plans]
    if how.dry_run:
        final = ("analyze", made[0].reuse, made[0].folder)
        print_plan(plans, how.json, final, verbose=how.verbose)
        return
    preflight.require(plans)
    set_threads(plans[0].cfg.machine.threads)
    before = {step.folder for plan in plans for step in plan.steps if not step.reuse}
    if how.where.elsewhere:
        run_plans(dict(enumerate(plans)), how.where)
    folders = [run_analysis(one) for one in made]
    ran = {*before, *(one.folder for one in made if not one.reuse)}
    steps = {step.folder for plan in plans for step in plan.steps} | {one.folder for one in made}
    if how.json:
        shown = {"ran": sorted(map(str, ran)), "reused": sorted(map(str, steps - ran))}
        described = [{"folder": str(f), "files": sorted(map(str, f.iterdir())), **shown} for f in folders]
        print_json(described if how.seeds else described[0])
        return
    for folder in folders:
        print((folder / "table.txt").read_text(encoding="utf-8"))
        _print_files(folder)
    say(f"{len(ran)} stages run, {len(steps) - len(ran)} reused")


@app.command()
def recommend(
    wishes: Annotated[
        list[str] | None,
        typer.Argument(help="bounds, such as 'overlap@10>=0.95' 'p95<=20ms' 'memory<=2GB', and KEY=VALUE"),
    ] = None,
    config: ConfigName = None,
    data: DataId = None,
    scale: Scale = None,
    jobs: Jobs = None,
    json: Json = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Find the engine and settings that meet a wish, chosen on one half of the queries and reported on the other.

    Runs what `analyze pareto` runs, for one model. Exit 0 where the wish is met on the other half, else 1.

    Example: xtrrep recommend 'overlap@10>=0.9' 'p95<=50ms' data=beir/nfcorpus/test
    """
    from xtrrep import config as configs
    from xtrrep.api import set_threads
    from xtrrep.experiments.definition import load_analysis
    from xtrrep.experiments.execute import Where
    from xtrrep.experiments.recommend import advise

    bounds = [text for text in wishes or [] if "<=" in text or ">=" in text]
    rest = [text for text in wishes or [] if text not in bounds]
    place = (jobs, None, None)
    how = _how(merge(rest, data=data, config=config, scale=scale), None, place, dry_run, False, json, verbose)
    chosen = how.overrides.pop("config", configs.compose().config)
    if dry_run:
        given = {**how.overrides, "analyze.models": f"[{chosen}]"}
        _carry_out([load_analysis("pareto", how.scale, given)], replace(how, overrides=given))
        return
    set_threads(configs.compose(rest).machine.threads)
    advice, _ = advise(bounds, chosen, how.scale, how.overrides, Where(jobs))
    kept = [f"{key}={value}" for key, value in how.overrides.items() if not key.startswith(("analyze.", "latency."))]
    if json:
        print_json(
            {
                "setting": advice.chosen.row.name,
                "overrides": advice.chosen.words,
                "meets": advice.met,
                "held_out": advice.held,
                "sure": advice.sure,
                "wishes": [dict(zip(advice.table.columns, row, strict=True)) for row in advice.table.rows],
            }
        )
    else:
        print(advice.table.terminal(), end="\n\n")
        print(advice.others.terminal(), end="\n\n")
        print("xtrrep eval", shlex.join([f"scale={how.scale}", *kept, *advice.chosen.words]))
        if advice.met and not advice.sure:
            say("note: it is met by little: other queries may miss it")
    raise typer.Exit(OK if advice.met and advice.held else DIFFER)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="a table, figure or stated result; --list names them")] = None,
    overrides: Overrides = None,
    only: Only = None,
    scale: Scale = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    on: On = None,
    memory: Memory = None,
    accept: Accept = False,
    listing: Listing = False,
    show: Annotated[bool, typer.Option("--show", help="the cells and the paper's values; run nothing")] = False,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="for --dry-run: another machine's, a file of xtrrep calibrate")
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Make a table, figure or stated result of the study again and compare it, cell by cell.

    Exit 0 agrees, 1 differs, 3 incomplete.

    Examples: xtrrep reproduce table3 | xtrrep reproduce table1 --only nfcorpus scale=paper model.source=released
    """
    from xtrrep.experiments import definition

    if listing:
        for known in definition.names():
            print(f"{known:<12} {definition.load(known, 'paper').title}")
        return
    if name is None or "=" in name:
        hint = f"all, or one of: {', '.join(definition.names())}"
        raise UsageError("`xtrrep reproduce` needs a name", hint=hint)
    if accept and show:
        raise UsageError("--accept records what was run, and nothing is", hint="leave out --show")
    how = _how(merge(overrides, scale=scale), seeds, (jobs, on, memory), dry_run, accept, json, verbose, calibration)
    wanted = definition.load_all(name, how.scale, only or ())
    if show:
        from xtrrep.experiments.run import not_run
        from xtrrep.experiments.tables import expected

        for experiment in wanted:
            result = not_run(replace(experiment, seeds=how.seeds), how.overrides)
            print(expected(result).terminal(), end="\n\n")
        return
    _carry_out(wanted, how, several=name == definition.ALL)


@app.command()
def claims(
    overrides: Overrides = None,
    only: Only = None,
    data: DataId = None,
    scale: Scale = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    on: On = None,
    memory: Memory = None,
    accept: Accept = False,
    listing: Listing = False,
    json: Json = False,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Test the study's statements on runs of our own: effect, interval, p, verdict. Exit 0, or 3 where none could run.

    Examples: xtrrep claims --only colbert_keeps_quality | xtrrep claims --seeds 42,43,44 --dry-run
    """
    from xtrrep.experiments import definition

    how = _how(merge(overrides, data=data, scale=scale), seeds, (jobs, on, memory), dry_run, accept, json, verbose)
    if accept and only:
        raise UsageError("--accept records the whole family, whose tests are corrected together", hint="without --only")
    experiment = definition.load_claims(how.scale, only or ())
    if listing:
        width = max(len(comparison.id) for comparison in experiment.comparisons)
        for comparison in experiment.comparisons:
            print(f"{comparison.id:<{width}}  {comparison.says} ({comparison.where})")
        return
    _carry_out([experiment], how)


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
