"""BEIR-layout data sets of the model hub: `hub:ORG/NAME`, with `/SPLIT` where it has several, and NanoBEIR by name.

Such a data set has the configurations `corpus` (_id, title, text), `queries` (_id, text) and the judgements (query-id,
corpus-id, score) in `qrels` or `default`, or in a data set of its own, ORG/NAME-qrels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from xtrrep.config import Data
from xtrrep.console import DataError, machine_error, request_reason
from xtrrep.data import Collection, sources
from xtrrep.data.folder import content_of_some, read_folder, write_beir

PREFIX = "hub:"
JUDGEMENTS = ("qrels", "default")


def parse(id: str) -> tuple[str, str | None]:
    """(ORG/NAME, split or None) of `hub:ORG/NAME[/SPLIT]`. Raises DataError for another form."""
    parts = id.removeprefix(PREFIX).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{id!r} names no data set of the hub", hint="data=hub:ORG/NAME, or data=hub:ORG/NAME/SPLIT")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


@cache
def commit_of(name: str) -> str | None:
    """The commit of the data set's main branch: as the hub says, else as this machine last saw it; None for neither.

    Raises DataError where the hub has no such data set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionResolutionError

    try:
        return str(HfApi().resolve_revision(name, repo_type="dataset").resolved)
    except RevisionResolutionError:
        return None
    except RepositoryNotFoundError:
        raise DataError(f"the hub has no public data set {name}", hint="data=hub:ORG/NAME") from None


@sources.register("hub", "data sets of the model hub in BEIR's layout: data=hub:ORG/NAME, data=nanobeir/NAME")
class Hub:
    """Downloads a data set through the hub's cache and keeps it as a BEIR folder."""

    @staticmethod
    def content(cfg: Data) -> dict[str, str]:
        name, split = parse(cfg.path or cfg.id)
        at = f"{name}@{commit_of(name)}"
        judged = f"{at}:{split}"
        return {"corpus": at, "queries": content_of_some(judged, cfg.max_queries), "qrels": judged}

    @staticmethod
    def prepare(cfg: Data, out: Path) -> None:
        name, split = parse(cfg.path or cfg.id)
        commit = commit_of(name)
        try:
            grades = [
                (str(r["query-id"]), str(r["corpus-id"]), int(r.get("score", 1)))
                for r in _judgements(name, commit, split)
            ]
            write_beir(
                out,
                _split(cfg),
                documents=((str(r["_id"]), r.get("title") or "", r["text"]) for r in _rows(name, "corpus", commit)),
                queries=((str(r["_id"]), r["text"]) for r in _rows(name, "queries", commit)),
                qrels=grades,
            )
        except DataError:
            raise
        except (KeyError, ValueError) as error:  # no such column; no such configuration
            what = str(error).strip().partition("\n")[0]
            raise DataError(
                f"{name} is not in BEIR's layout, with corpus, queries and qrels ({what})",
                hint="data.path=FOLDER data.split=SPLIT reads a local folder",
            ) from None
        except Exception as error:  # datasets, huggingface_hub and the HTTP client each raise their own kinds
            why = request_reason(error)
            raise machine_error(error, "HF_HOME") or DataError(
                f"could not read {name} from the hub ({why})", hint="data.path=FOLDER data.split=SPLIT"
            ) from error

    @staticmethod
    def open(cfg: Data, out: Path) -> Collection:
        return read_folder(cfg.id, out, _split(cfg), cfg.max_queries)


def _judgements(name: str, commit: str | None, split: str | None) -> Iterator[dict[str, Any]]:
    for part in JUDGEMENTS:
        try:
            return _rows(name, part, commit, split)
        except ValueError:  # no such configuration: the next place
            continue
    return _rows(f"{name}-qrels", None, None, split)


def _rows(name: str, subset: str | None, commit: str | None, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of a split; without one, of `test` where there is one, or of the only one there is."""
    from datasets import load_dataset

    parts = load_dataset(name, subset, revision=commit)
    chosen = split or ("test" if "test" in parts else next(iter(parts)) if len(parts) == 1 else None)
    if chosen not in parts:
        raise DataError(f"{name} has the splits {', '.join(parts)}", hint=f"data=hub:{name}/{next(iter(parts))}")
    return iter(parts[chosen])


def _split(cfg: Data) -> str:
    return parse(cfg.path or cfg.id)[1] or "test"
