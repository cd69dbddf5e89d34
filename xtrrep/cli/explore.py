"""The verb that opens the local page."""

from __future__ import annotations

from typing import Annotated

import typer

from xtrrep.cli.options import ConfigName, DataId, DryRun, Index, Json, Overrides, Scale, app, merge
from xtrrep.cli.output import print_json, print_plan
from xtrrep.cli.stages import plans_of, set_threads_of
from xtrrep.console import say


@app.command()
def explore(
    overrides: Overrides = None,
    index: Index = None,
    data: DataId = None,
    config: ConfigName = None,
    scale: Scale = None,
    host: Annotated[
        str, typer.Option("--host", help="the address to answer at; 0.0.0.0 for any machine")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="the port; 0 for any that is free")] = 8000,
    listing: Annotated[bool, typer.Option("--list", help="list what the page can search; run nothing")] = False,
    json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Open a local page that compares two models, engines or settings on a query that you type.

    It offers every index of the collection that is complete, and builds the one that the overrides name.

    Examples: xtrrep explore | xtrrep explore --data beir/nfcorpus/test --index warp --port 8080
    """
    from xtrrep import pipeline
    from xtrrep.explore import server
    from xtrrep.explore.indexes import indexed
    from xtrrep.plan import preflight

    words = merge(overrides, index=index, data=data, config=config, scale=scale)
    plans = plans_of(words, "index")
    if dry_run:
        print_plan(plans, json)
        return
    if not listing:
        server.require()
        preflight.require(plans)
        set_threads_of(plans)
        pipeline.run(plans)
    found = indexed(words)
    if json:
        print_json([{"name": one.name, "folder": str(one.folders["index"])} for one in found.values()])
        return
    if listing:
        print("\n".join(found) or f"no index of {plans[0].cfg.data.id} yet; without --list one is built")
    else:
        say(f"{len(found)} indexes of {plans[0].cfg.data.id}")
        server.serve(found, host, port)
