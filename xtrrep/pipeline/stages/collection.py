"""The `data` stages: a collection, checked, and built where it is not a local folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtrrep.artifacts import Spec
from xtrrep.config import Data
from xtrrep.console import DataError, say
from xtrrep.data import check, irds, resolve, sources
from xtrrep.pipeline.identity import content_of, slug


def data_spec(stage: str, data: Data) -> Spec:
    content = content_of(data)
    config = {"loader": resolve(data).loader, "max_queries": data.max_queries, "split": data.split}
    return Spec(stage, slug(data.id), 1, config, content=content)


def missing_note(counts: Mapping[str, Any]) -> str:
    missing, judged = counts["judged_missing"], counts["judgements"]
    return f"{missing:,} judgements of {judged:,} are of documents that are not in the corpus: no system can find them"


def data_run(data: Data, out: Path) -> dict[str, Any]:
    data = resolve(data)
    source = sources.get(data.loader)
    source.prepare(data, out)
    counts = check(source.open(data, out))
    if data.loader == "ir_datasets" and data.size and counts["documents"] != data.size[0] and irds.is_verified(data):
        raise DataError(
            f"{data.id} has {counts['documents']} documents, and its config says {data.size[0]}",
            hint="data.size=null takes it as it is",
        )
    if counts["judged_missing"]:
        say(f"  note: {missing_note(counts)}")
    return {"units": {"collections": 1}, "id": data.id, **counts}
