"""Several collections as one, for training on more than one domain: `data.parts=[pydoc/train,beir/nfcorpus/train]`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from xtrrep import config as configs
from xtrrep.artifacts import digest
from xtrrep.config import Data
from xtrrep.console import UsageError
from xtrrep.data import Collection, resolve, sources
from xtrrep.data.folder import content_of_some, some


def _parts(cfg: Data) -> list[Data]:
    """The collections it is made of. Raises UsageError where none is named or one is a mixture, DataError where one is
    unknown."""
    if not cfg.parts:
        raise UsageError(f"{cfg.id} is a mixture of nothing", hint="data.parts=[ID,ID]")
    found = [resolve(configs.compose([f"data={name}"]).data) for name in cfg.parts]
    for part in found:
        if part.loader == cfg.loader:
            raise UsageError(f"{cfg.id} holds {part.id}, which is a mixture itself", hint="name its parts")
    return found


@sources.register("mixture", "several collections as one, each id with the number of its part before it")
class Mixture:
    """Documents and queries of all parts, in the order of `data.parts`; a query is judged within its own part."""

    @staticmethod
    def content(cfg: Data) -> dict[str, str]:
        parts = [sources.get(part.loader).content(part) for part in _parts(cfg)]
        found = {key: f"mixture:{key}:{digest([part[key] for part in parts])}" for key in parts[0]}
        return found | {"queries": content_of_some(found["queries"], cfg.max_queries)}

    @staticmethod
    def prepare(cfg: Data, out: Path) -> None:
        for number, part in enumerate(_parts(cfg)):
            sources.get(part.loader).prepare(part, out / str(number))

    @staticmethod
    def open(cfg: Data, out: Path) -> Collection:
        parts = [sources.get(part.loader).open(part, out / str(n)) for n, part in enumerate(_parts(cfg))]

        def documents() -> Iterator[tuple[str, str]]:
            for number, part in enumerate(parts):
                for id, text in part.documents():
                    yield f"{number}:{id}", text

        queries = {f"{n}:{id}": text for n, part in enumerate(parts) for id, text in part.queries.items()}
        qrels = {
            f"{n}:{id}": {f"{n}:{document}": grade for document, grade in grades.items()}
            for n, part in enumerate(parts)
            for id, grades in part.qrels.items()
        }
        kept = some(queries, cfg.max_queries)
        return Collection(cfg.id, documents, kept, {id: qrels[id] for id in kept})
