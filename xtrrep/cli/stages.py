"""Verbs that run stages: of training, of a collection, of one query."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xtrrep.cli.options import (
    TYPED_QUERY,
    ConfigName,
    DataId,
    DryRun,
    Index,
    Json,
    Overrides,
    Scale,
    app,
    check_typed,
    merge,
)
from xtrrep.cli.output import print_json, print_plan, relative, writable
from xtrrep.console import UsageError, say

if TYPE_CHECKING:
    from xtrrep.api import Result
    from xtrrep.pipeline import Plan


def plans_of(overrides: Sequence[str], until: str, *, typed: bool = False) -> list[Plan]:
    """The plan up to a stage, with all that answers a typed query where that is what it is for."""
    from xtrrep import config, pipeline
    from xtrrep.pipeline.query import searched

    cfg = config.compose(overrides)
    return [pipeline.plan(cfg, until, *(searched(cfg) if typed else ()))]


def set_threads_of(plans: Sequence[Plan]) -> None:
    from xtrrep.api import set_threads

    set_threads(plans[0].cfg.machine.threads)


def work(overrides: Sequence[str], until: str, json: bool, dry_run: bool) -> Result | None:
    """Plan, check and run up to a stage; None after a dry run."""
    if dry_run:
        print_plan(plans_of(overrides, until), json)
        return None
    return carried_out(overrides, until)


def carried_out(overrides: Sequence[str], until: str) -> Result:
    """Check and run up to a stage; what no stage printed is said."""
    from xtrrep.api import run_config

    result = run_config(*overrides, until=until)
    for text in result.unsaid:
        say(f"  note: {text}")
    return result


def summary(result: Result) -> dict[str, Any]:
    return {
        "stage": result.final,
        "folder": str(result.folder),
        "fingerprint": result.plan.specs[result.final].fingerprint,
        "ran": [str(path) for path in result.ran],
        "reused": [str(path) for path in result.reused],
        "facts": result.facts,
        "notes": result.notes,
    }


def finish(result: Result | None, json: bool) -> None:
    if result is None:
        return
    if json:
        print_json(summary(result))
        return
    say(f"{len(result.ran)} stages run, {len(result.reused)} re-used")
    print(relative(result.folder))
    for key, value in result.facts.items():
        if key not in ("units", "measures") and value is not None:
            print(f"  {key:<24} {value}")


def verb(until: str, overrides: list[str], json: bool, dry_run: bool) -> None:
    finish(work(overrides, until, json, dry_run), json)


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
    verb("train", merge(overrides, config=config, scale=scale), json, dry_run)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="where to; it must not exist yet, or be empty")],
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    of: Annotated[str, typer.Option("--of", help="model, index, or run")] = "model",
    pylate: Annotated[
        bool, typer.Option("--pylate", help="a model that PyLate loads, and sentence-transformers too")
    ] = False,
    push: Annotated[str | None, typer.Option("--push", help="upload the folder to the hub as ORG/NAME")] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Copy a trained model, an index or a run to FOLDER, with a page: settings, the command, scores measured here.

    Examples: xtrrep export my-xtr config=xtr_k128 --pylate --push me/my-xtr | xtrrep export my-index --of index --index
    warp | xtrrep export my-run --of run --index bm25
    """
    from xtrrep import config as configs
    from xtrrep.pipeline import export as exporting

    words, folder = merge(overrides, index=index, data=data, config=config, scale=scale), folder.expanduser()
    exporting.check(configs.compose(words), folder, of)  # before anything is trained
    if pylate and of != "model":
        raise UsageError(f"--pylate is a layout of models, and --of {of} is none", hint="leave out --pylate")
    if push is not None:
        exporting.check_repository(push)
    until = exporting.UNTIL[of]
    result = work(words, until, json, dry_run)
    if result is None:
        return
    told = [word for word in words if not word.startswith("machine.")]
    command = shlex.join(["xtrrep", until, *told])
    scores: list[dict[str, Any]] = []
    if of == "model":
        scores = exporting.export(result.plan, result.folder, folder, command, pylate=pylate)
    else:
        make = {"index": exporting.export_index, "run": exporting.export_run}[of]
        make(result.plan, result.folders, folder, command)
    page = None if push is None else exporting.push(folder, push, of)
    if json:
        known = {"folder": str(folder), "fingerprint": summary(result)["fingerprint"]}
        known |= {"scores": scores} if of == "model" else {}
        print_json(known | ({} if page is None else {"pushed": page}))
        return
    print(relative(folder))
    if page is not None:
        say(f"pushed {page}")
    if of == "model":
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
    verb("documents", merge(overrides, data=data, config=config, scale=scale), json, dry_run)


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
    verb("index", merge(overrides, index=index, data=data, config=config, scale=scale), json, dry_run)


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
    words = merge(overrides, index=index, data=data, config=config, scale=scale)
    if out is not None:
        out = writable(out)  # before anything is run
    result = work(words, "retrieve", json, dry_run)
    if result is not None and out is not None:
        from xtrrep.artifacts import write_atomic

        found = (result.folder / "run.trec").read_bytes()
        write_atomic(out, lambda file: file.write(found))
    finish(result, json)


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
    mteb: Annotated[
        Path | None, typer.Option("--mteb", help="write the scores to here as mteb keeps them: JSON")
    ] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Score a run by ir-measures names (alias: eval).

    Examples: xtrrep eval --index scann | xtrrep eval config=colbert retrieve.k_prime=1000 'data.measures=[nDCG@10,P@5]'
    | xtrrep eval data=beir/cqadupstack (the mean of its twelve)
    | xtrrep eval --run bm25.trec | xtrrep eval retrieve.from_run=bm25.trec (its documents re-ranked by MaxSim)
    """
    from xtrrep.cli import several

    words = merge(overrides, index=index, data=data, config=config, scale=scale)
    if parts := several.parts_named(words):
        several.refuse({"--run": run, "--mteb": mteb})
        if dry_run:
            print_plan([plan for each in parts.values() for plan in plans_of(each, "evaluate")], json)
        else:
            several.evaluate(parts, lambda each: carried_out(each, "evaluate"), json)
        return
    if run is not None:
        words += [f"retrieve.from_run={run}", "retrieve.scoring=run"]
    if mteb is not None:
        from xtrrep.pipeline import mteb as results_of_mteb

        mteb = writable(mteb)
        results_of_mteb.check(list(plans_of(words, "evaluate")[0].cfg.data.measures))
    result = work(words, "evaluate", json, dry_run)
    if result is None:
        return
    if mteb is not None:
        from xtrrep.artifacts import read_manifest, write_json

        judged = str(read_manifest(result.folder)["content"]["qrels"])
        write_json(mteb, results_of_mteb.result(result.plan.cfg.data.id, judged, result.facts["measures"]))
    measures = result.facts["measures"]
    run_file = result.folders["retrieve"] / "run.trec"
    if json:
        print_json({**summary(result), "measures": measures, "run": str(run_file)})
        return
    from xtrrep.measure.evaluate import canonical
    from xtrrep.pipeline import identity
    from xtrrep.report.table import Table

    cfg = result.plan.cfg
    setting = identity.setting_of(cfg)
    names = list(cfg.data.measures)
    engine, model = identity.engine_label(cfg), identity.needs_model(cfg)
    row: list[object] = [identity.model_label(cfg) if model else engine, setting.scoring if model else None]
    row += [setting.k_prime, *(float(measures[canonical(name)]) for name in names)]
    say(f"{len(result.ran)} stages run, {len(result.reused)} re-used")
    footer = [
        f"scale={cfg.scale}, protocol={cfg.protocol.name}, {result.facts['units']['queries']} queries",
        *([f"the best {setting.rerank} re-ranked by MaxSim"] if setting.rerank else []),
        *result.notes,
        f"run file   {relative(run_file)}",
        f"per query  {relative(result.folder / 'per_query.csv')}",
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
    result = work(merge(overrides, index=index, data=data, config=config, scale=scale), "latency", json, dry_run)
    if result is None:
        return
    if json:
        print_json(summary(result))
        return
    from xtrrep.pipeline.identity import model_label
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
        relative(result.folder / "latency.csv"),
    ]
    print(Table(f"{cfg.data.id}, index={cfg.index['engine']}", columns, [row], footer, digits=2).terminal())


@app.command(context_settings=TYPED_QUERY)
def search(
    query: Annotated[str, typer.Argument(help="the query, in quotes")],
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    top: Annotated[int | None, typer.Option("--top", min=1, help="documents to print (5)")] = None,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Search a collection for a typed query: the best documents with score and text.

    Example: xtrrep search "shortest path between two nodes" --top 3
    """
    from xtrrep import pipeline
    from xtrrep.pipeline import query as typed
    from xtrrep.plan import preflight

    check_typed(query, overrides, "search")
    typed.check_query(query)
    words = merge(overrides, index=index, data=data, config=config, scale=scale)
    if top is not None or not any(word.startswith("retrieve.top_k=") for word in words):
        words.append(f"retrieve.top_k={top or 5}")
    plans = plans_of(words, "index", typed=True)
    if dry_run:
        print_plan(plans, json)
        return
    preflight.require(plans)
    set_threads_of(plans)
    done = pipeline.run(plans)
    found = typed.search(plans[0], done.folders[0], query)
    if json:
        print_json({"query": query, "documents": [{"id": d, "score": s, "text": t} for d, s, t in found]})
        return
    for rank, (document, score, text) in enumerate(found, start=1):
        print(f"{rank:>2}. {score:.4f}  {document}")
        print(f"    {' '.join(text.split())[:300]}")
    if not found:
        say("nothing found")


@app.command(context_settings=TYPED_QUERY)
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
    dry_run: DryRun = False,
) -> None:
    """Show why a document scores what it scores for a typed query: token by token, under XTR and MaxSim.

    The page with the heat map is kept for `xtrrep report`.

    Examples: xtrrep explain "a random graph" --doc networkx.algorithms.smallworld:random_reference | the same with
    retrieve.k_prime=100 retrieve.imputation=mean --out why.html
    """
    from xtrrep import config as configs
    from xtrrep import pipeline
    from xtrrep.pipeline import query as typed
    from xtrrep.plan import preflight

    check_typed(query, overrides, "explain")
    typed.check_query(query)
    words = merge(overrides, index=index, data=data, config=config, scale=scale)
    plans = plans_of(words, "index")
    typed.check_explainable(plans[0].cfg)
    if dry_run:
        print_plan(plans, json)
        return
    if out is not None:
        out = writable(out)
    preflight.require(plans)
    set_threads_of(plans)
    corpus = pipeline.run(plans_of(words, "data"))
    typed.document_text(plans[0].cfg, corpus.folders[0], doc)  # a mistyped id is said before anything is trained
    done = pipeline.run(plans)
    found = typed.explain(plans[0], done.folders[0], query, doc)
    from xtrrep.retrieval import explain as explaining
    from xtrrep.retrieval import explain_page

    page = explain_page.save(found, plans[0].specs["index"], configs.results_root()) / "page.html"
    say(f"wrote {relative(page)}")
    if out is not None:
        from xtrrep.artifacts import write_atomic

        write_atomic(out, lambda file: file.write(page.read_bytes()))
        say(f"wrote {relative(out)}")
    if json:
        print_json(explaining.as_json(found))
        return
    print(explaining.table(found, grouped=True).terminal())
    print(f"\n{' '.join(found.text.split())[:300]}")
