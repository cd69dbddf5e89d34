"""The command line: one short function a verb. Heavy imports stay inside, so that --help answers at once."""

from __future__ import annotations

import io
import json as jsonlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from xtrrep.console import OK, USAGE, DataError, UsageError, XtrrepError, fail, say

if TYPE_CHECKING:
    from xtrrep.pipeline import Done, Plan

INTERRUPTED = 130  # what a shell expects after Ctrl-C

HELP = """Experiments with multi-vector retrieval: ColBERT and XTR, trained, indexed and compared.

Every verb takes KEY=VALUE overrides of the configuration beside its options, runs the stages that are missing and
re-uses the rest. Defaults: config=xtr_k128 setup=I scale=demo data=pydoc/test index=exact protocol=stated.

Exit codes: 0 ok, 1 scores differ, 2 usage, 3 data, model or engine missing or broken.
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)

Overrides = Annotated[list[str] | None, typer.Argument(help="KEY=VALUE, e.g. config=colbert retrieve.k_prime=1000")]
Index = Annotated[str | None, typer.Option("--index", help="engine: exact, scann, bm25 (same as index=NAME)")]
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


def _print_plan(plans: Sequence[Plan], json: bool, final: tuple[str, bool, Path] | None = None) -> None:
    from xtrrep import preflight

    lines = preflight.forecast(plans)
    if final is not None:
        stage, reuse, folder = final
        lines.append(preflight.Forecast(stage, "reuse" if reuse else "run", folder, "", 0.0 if reuse else None, ""))
    fetch = preflight.downloads(plans)
    problems = preflight.missing(plans)
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
            }
        )
        return
    for line in lines:
        time = "" if line.action == "reuse" else f"{preflight.duration(line.seconds)} {line.source}".strip()
        print(f"{line.action:<6} {line.stage:<10} {line.units:<24} {time:<26} {_relative(line.folder)}")
    for name, size in fetch.items():
        print(f"fetch  {name}  {f'{size:,} MB' if size else 'size not known'}")
    times = [f"about {preflight.duration(known)}"] if known or not unknown else []
    times += [f"{unknown} of unknown time"] if unknown else []
    print(f"{len(todo)} to run, {len(lines) - len(todo)} re-used; {', and '.join(times)}")
    for problem in problems:
        print(f"missing: {problem}")


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _threads(plans: Sequence[Plan]) -> None:
    wanted = plans[0].cfg.machine.threads
    if wanted is not None:
        import torch

        torch.set_num_threads(wanted)


def _work(overrides: Sequence[str], until: str, json: bool, dry_run: bool) -> tuple[Plan, Done, dict[str, Any]] | None:
    """Plan, check and run up to a stage; None after a dry run."""
    from xtrrep import pipeline, preflight
    from xtrrep.artifacts import read_manifest

    plans = _plans(overrides, until)
    if dry_run:
        _print_plan(plans, json)
        return None
    preflight.require(plans)
    _threads(plans)
    done = pipeline.run(plans)
    final = plans[0].steps[-1].stage.name  # `train` ends with `distill` for a distilled model
    folder = done.folders[0][final]
    result = {
        "stage": final,
        "folder": str(folder),
        "fingerprint": plans[0].specs[final].fingerprint,
        "ran": [str(path) for path in done.ran],
        "reused": [str(path) for path in done.reused],
        "facts": read_manifest(folder)["facts"],
    }
    return plans[0], done, result


def _finish(outcome: tuple[Plan, Done, dict[str, Any]] | None, json: bool) -> None:
    if outcome is None:
        return
    _, done, result = outcome
    if json:
        _print_json(result)
        return
    say(f"{len(done.ran)} stages run, {len(done.reused)} re-used")
    print(_relative(Path(result["folder"])))
    for key, value in result["facts"].items():
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
    outcome = _work(words, "train", json=False, dry_run=False)
    if outcome is None:
        return
    plan, _, result = outcome
    scores = export(plan, Path(result["folder"]), folder)
    if json:
        _print_json({"folder": str(folder), "fingerprint": result["fingerprint"], "scores": scores})
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
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Rank documents for every judged query: a TREC run file.

    Example: xtrrep retrieve config=colbert retrieve.scoring=xtr retrieve.k_prime=1000
    """
    _verb("retrieve", _merge(overrides, index=index, data=data, config=config, scale=scale), json, dry_run)


@app.command()
def evaluate(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Score a run by ir-measures names (alias: eval).

    Examples: xtrrep eval --index scann | xtrrep eval config=colbert retrieve.k_prime=1000 'data.measures=[nDCG@10,P@5]'
    """
    outcome = _work(_merge(overrides, index=index, data=data, config=config, scale=scale), "evaluate", json, dry_run)
    if outcome is None:
        return
    plan, done, result = outcome
    measures = result["facts"]["measures"]
    run = done.folders[0]["retrieve"] / "run.trec"
    if json:
        _print_json({**result, "measures": measures, "run": str(run)})
        return
    from xtrrep import pipeline
    from xtrrep.evaluate import canonical
    from xtrrep.report.table import Table

    cfg = plan.cfg
    setting = pipeline.setting_of(cfg)
    names = list(cfg.data.measures)
    text = pipeline.is_text_engine(cfg)
    row: list[object] = ["bm25" if text else pipeline.model_label(cfg), None if text else setting.scoring]
    row += [None if text else setting.k_prime, *(float(measures[canonical(name)]) for name in names)]
    say(f"{len(done.ran)} stages run, {len(done.reused)} re-used")
    footer = [
        f"scale={cfg.scale}, protocol={cfg.protocol.name}, {result['facts']['units']['queries']} queries",
        f"run file   {_relative(run)}",
        f"per query  {_relative(Path(result['folder']) / 'per_query.csv')}",
    ]
    title = f"{cfg.data.id}, index={cfg.index['engine']}"
    print(Table(title, ["model", "scoring", "k'", *names], [row], footer).terminal())


app.command("eval", hidden=True, help="Alias of evaluate.")(evaluate)


@app.command()
def analyze(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    scale: Scale = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Run an analysis over many models and settings: a table and a figure.

    Examples: xtrrep analyze | xtrrep analyze 'analyze.models=[colbert,xtr_k64]' data=beir/nfcorpus/test
    """
    from xtrrep import pipeline, preflight

    plan = pipeline.plan_analysis(_merge(overrides, index=index, data=data, scale=scale))
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
    print((folder / "table.txt").read_text())
    for name in ("figure1.png", "figure1.svg", "table.md", "table.csv"):
        print(_relative(folder / name))
    say(f"{len(done.ran)} stages run, {len(done.reused)} re-used")


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

    pipeline.check_query(query)
    words = _merge(overrides, index=index, data=data, config=config, scale=scale)
    if top is not None or not any(word.startswith("retrieve.top_k=") for word in words):
        words.append(f"retrieve.top_k={top or 5}")
    plans = _plans(words, "index")
    preflight.require(plans)
    _threads(plans)
    done = pipeline.run(plans)
    found = pipeline.search(plans[0], done.folders[0], query)
    if json:
        _print_json({"query": query, "documents": [{"id": d, "score": s, "text": t} for d, s, t in found]})
        return
    for rank, (document, score, text) in enumerate(found, start=1):
        print(f"{rank:>2}. {score:.4f}  {document}")
        print(f"    {' '.join(text.split())[:300]}")
    if not found:
        say("nothing found")


@app.command()
def ls(json: Json = False) -> None:
    """List configs, collections, engines, analyses and artifacts."""
    from xtrrep import artifacts, config
    from xtrrep.analyze import analyses
    from xtrrep.index import engines

    listing: dict[str, list[dict[str, str]]] = {
        group: [{"name": name} for name in config.options(group)] for group in config.GROUPS if group != "index"
    }
    listing["engine"] = [{"name": n, "summary": e.summary, "paper": e.paper} for n, e in engines.entries().items()]
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
    sys.exit(_run(sys.argv[1:]))


def _run(words: list[str]) -> int:
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
    except OSError as error:
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
