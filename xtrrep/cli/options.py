"""The application, and the options that its verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from xtrrep.console import UsageError

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
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="every step of a dry run, every difference of a result")]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="part of it: a collection, column, cell or claim; may be given again")
]
Seeds = Annotated[
    str | None, typer.Option("--seeds", help="train every model under each, e.g. 42,43,44; values are means over them")
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="so many processes on this machine, through Ray")]
Memory = Annotated[
    float | None, typer.Option("--memory", min=0.1, help="GB that --jobs may take together (80 % of what is free)")
]
On = Annotated[str | None, typer.Option("--on", help="ray: run on the Ray cluster that RAY_ADDRESS names")]
Accept = Annotated[bool, typer.Option("--accept", help="record what came out in results/recorded")]
Listing = Annotated[bool, typer.Option("--list", help="list what there is; run nothing")]


# A query may begin with a dash, as in `xtrrep search "-number 12"`.
TYPED_QUERY = {"ignore_unknown_options": True}


def check_typed(query: str, overrides: list[str] | None, verb: str) -> None:
    """Raise UsageError for a misspelt option, which TYPED_QUERY lets through."""
    for text in (query, *(overrides or [])):
        if text.startswith("-") and (text is not query or (text.startswith("--") and not text.split()[1:])):
            raise UsageError(f"No such option: {text}", hint=f"xtrrep {verb} --help")


def merge(overrides: list[str] | None, **options: str | None) -> list[str]:
    return [*(overrides or []), *(f"{key}={value}" for key, value in options.items() if value is not None)]
