"""What `data=NAME` names: a file, a local folder, an id of ir-datasets, a data set of the hub."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xtrrep.config import places

OF_A_COLLECTION = ("n_query", "n_doc", "drop_self", "measures")  # these follow a collection under every name


@cache
def _named_collections(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """The BEIR and LoTTE collections of configs/data: {name: (the name without its split, what its file says)}."""
    found = {}
    for path in sorted((folder / "data").rglob("*.yaml")):
        values = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(values, dict) and values.get("loader") == "ir_datasets":
            name = str(path.relative_to(folder / "data").with_suffix(""))
            found[name] = (name.removesuffix(f"/{values['split']}"), {str(key): v for key, v in values.items()})
    return found


def same_collection(value: str) -> str | None:
    """The name in configs/data of `beir/arguana/test`, `beir/nfcorpus`, ...: with or without the split."""
    for name, (base, values) in _named_collections(places.config_dir()).items():
        if value in (base, f"{base}/{values['split']}"):
            return name
    return None


def collection_at(path: str) -> str | None:
    """The collection that a folder holds by its name, such as `beir/arguana` for `.../arguana`; None for any other."""
    parts = Path(path).expanduser().resolve().parts
    for name, (base, _) in _named_collections(places.config_dir()).items():
        tail = tuple(base.removeprefix("beir/").removesuffix("/v2").split("/"))
        if parts[-len(tail) :] == tail:
            return name
    return None


def settings_of(name: str | None) -> list[str]:
    """The overrides that a named collection brings along, whatever split or folder it is read from."""
    if name is None:
        return []
    _, values = _named_collections(places.config_dir())[name]
    settings = {key: values[key] for key in OF_A_COLLECTION if key in values}
    return [
        f"data.{key}=[{','.join(value)}]" if isinstance(value, list) else f"data.{key}={str(value).lower()}"
        for key, value in settings.items()
    ]


def local_collection(value: str) -> list[str] | None:
    """Overrides for `beir/NAME/SPLIT` where `$XTRREP_DATA/NAME` is a folder and no file names the collection."""
    parts = value.split("/")
    home = os.environ.get("XTRREP_DATA")
    if len(parts) == 3 and parts[0] == "beir" and home and (Path(home) / parts[1]).is_dir():
        place = Path(home) / parts[1]
        settings = settings_of(collection_at(str(place)))
        return ["data=folder", f"data.id={value}", f"data.path={place}", f"data.split={parts[2]}", *settings]
    return None


@cache
def _registry() -> dict[str, Any]:
    """What ir-datasets lists of its collections: counts by id. Read without importing the library."""
    import json
    from importlib.util import find_spec

    spec = find_spec("ir_datasets")
    if spec is None or spec.origin is None:
        return {}
    return dict(json.loads((Path(spec.origin).parent / "etc" / "metadata.json").read_text(encoding="utf-8")))


def registered() -> list[str]:
    """The ids of ir-datasets that have documents, queries and judgements."""
    return [id for id, entry in _registry().items() if entry.keys() >= {"docs", "queries", "qrels"}]


def _count(id: str, kind: str) -> int | None:
    """Documents or queries of an ir-datasets id; some entries refer to another id's."""
    entry = _registry().get(id, {}).get(kind, {})
    return _count(entry["_ref"], kind) if "_ref" in entry else entry.get("count")


def parts_of(value: str) -> list[str]:
    """The collections that `beir/cqadupstack` stands for, whose mean BEIR reports: one for each of its forums."""
    group = f"{value}/"
    return [id for id in registered() if id.startswith(group)] if value == "beir/cqadupstack" else []


# Thirteen of BEIR's collections with 50 queries each and a small corpus.
NANOBEIR = {
    f"nanobeir/{name.lower()}": f"hub:zeta-alpha-ai/Nano{name}"
    for name in (
        "ArguAna", "ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ",
        "QuoraRetrieval", "SCIDOCS", "SciFact", "Touche2020",
    )
}  # fmt: skip


def hub_collection(value: str) -> list[str] | None:
    """Overrides for `hub:ORG/NAME[/SPLIT]` and `nanobeir/NAME`."""
    place = NANOBEIR.get(value, value)
    if not place.startswith("hub:"):
        return None
    overrides = ["data=folder", f"data.id={value}", "data.loader=hub", f"data.path={place}"]
    overrides += ["data.measures=[nDCG@10,Recall@100]"]
    return [*overrides, *(["data.drop_self=true"] if value.endswith("/arguana") else [])]


def registered_collection(value: str) -> list[str] | None:
    """Overrides for an ir-datasets id that no file names: its size, and the measures its benchmark reports."""
    if value not in registered():
        return None
    group, last = value.partition("/")[0], value.rpartition("/")[2]
    split = last if last in ("train", "dev", "test", "search", "forum") else "test"
    measures = "[nDCG@10,Recall@100]"
    if group == "lotte":
        measures = "[Success@5]"
    elif group in ("msmarco-passage", "msmarco-passage-v2"):
        measures = "[nDCG@10,MRR@10,Recall@100]" if "trec-dl" in value else "[MRR@10,Recall@100]"
    size = [_count(value, "docs"), _count(value, "queries")]
    sized = [f"data.size=[{size[0]},{size[1]}]"] if None not in size else []
    overrides = ["data=folder", f"data.id={value}", "data.loader=ir_datasets", f"data.split={split}"]
    return [*overrides, f"data.measures={measures}", *sized]
