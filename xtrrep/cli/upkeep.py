"""Verbs that look after what is there: artifacts, settings, the machine."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from xtrrep.cli.options import ConfigName, DataId, Index, Json, Overrides, Scale, app, merge
from xtrrep.cli.output import print_json, relative
from xtrrep.console import say, typed


@app.command()
def ls(json: Json = False) -> None:
    """List configs, collections, engines, analyses and artifacts."""
    from xtrrep import artifacts, config
    from xtrrep.experiments.analyses import analyses
    from xtrrep.experiments.definition import analyses_by_name
    from xtrrep.retrieval.engines import engines
    from xtrrep.retrieval.imputation import imputations

    listing: dict[str, list[dict[str, str]]] = {
        group: [{"name": name} for name in config.options(group)] for group in config.GROUPS
    }
    listing["engine"] = [{"name": n, "summary": e.summary, "paper": e.paper} for n, e in engines.entries().items()]
    listing["imputation"] = [{"name": n, "summary": e.summary} for n, e in imputations.entries().items()]
    summaries = analyses_by_name() | {name: entry.summary for name, entry in analyses.entries().items()}
    listing["analysis"] = [{"name": n, "summary": summary} for n, summary in sorted(summaries.items())]
    listing["artifact"] = []
    for root in (config.artifacts_root(), config.results_root()):
        for folder, manifest in artifacts.complete(root):
            size = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
            summary = f"{manifest['made']}  {manifest['seconds']:,.0f} s  {size:,.1f} MB"
            listing["artifact"].append({"name": relative(folder), "summary": summary})
    if json:
        print_json(listing)
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
    from xtrrep.artifacts import verify as verifying
    from xtrrep.report.table import Table

    verdicts = verifying.verify(what)
    wrong = [verdict for verdict in verdicts if verdict.faults]
    if json:
        print_json([{**vars(v), "folder": str(v.folder), "fine": not v.faults} for v in verdicts])
    else:
        rows: list[list[object]] = [
            [f"{v.folder.parent.name}/{v.folder.name}", v.files, v.bytes / 1e6, "BROKEN" if v.faults else "fine"]
            for v in verdicts
        ]
        footer = [fault for verdict in wrong for fault in verdict.faults]
        footer += [f"hint: rm -r {typed(verdict.folder)} and run again to rebuild it" for verdict in wrong]
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
    from xtrrep.artifacts import gc as collecting
    from xtrrep.report.table import Table

    waste = collecting.remove(what) if yes else collecting.find(what)
    total = sum(item.bytes for item in waste)
    if json:
        print_json({"waste": [{**vars(w), "path": str(w.path)} for w in waste], "bytes": total, "removed": yes})
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

    cfg, origins = configs.compose_with_origins(merge(overrides, index=index, data=data, config=config, scale=scale))
    values = configs.flat(cfg)
    prints = {step.stage.name: step.spec.fingerprint for step in pipeline.plan(cfg, "evaluate").steps}
    if json:
        print_json({"config": values, "origins": origins, "fingerprints": prints})
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
    from xtrrep import config as configs
    from xtrrep.plan import calibrate as calibrating

    path, found = calibrating.calibrate(configs.compose(merge(overrides, scale=scale)))
    if json:
        print_json(found)
        return
    for kind, rate in found["rates"].items():
        print(f"{kind:<8} {rate / 1e12:>10.4f} TFLOP/s   {found['measured'][kind]}")
    print(relative(path))


@app.command()
def doctor(json: Json = False) -> None:
    """Check Python, torch, GPU, engines, weights, disk and network, and name the fix for each fault."""
    from xtrrep.plan import preflight

    rows = preflight.doctor()
    if json:
        print_json([dict(zip(("what", "fine", "finding", "fix"), row, strict=True)) for row in rows])
    else:
        for what, fine, finding, fix in rows:
            mark = {True: "ok  ", False: "FAIL", None: "note"}[fine]
            print(f"{mark} {what:<36} {finding}" + (f"   hint: {fix}" if fine is not True and fix else ""))
    if any(fine is False for _, fine, _, _ in rows):
        raise typer.Exit(3)
