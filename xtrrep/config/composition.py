"""Groups and overrides to a checked configuration, by Hydra."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, SCMode, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from xtrrep.config import places
from xtrrep.config.checks import check_index_types, check_keys, check_meaning, explain
from xtrrep.config.choices import keys_of_file, options
from xtrrep.config.collections import (
    NANOBEIR,
    collection_at,
    hub_collection,
    local_collection,
    parts_of,
    registered,
    registered_collection,
    same_collection,
    settings_of,
)
from xtrrep.config.overrides import for_hydra, split_override, unwrapped
from xtrrep.config.registry import load_plugins
from xtrrep.config.schema import GROUPS, Config, Data, Objective, Scorer, flat
from xtrrep.console import DataError, UsageError, suggest

_COMPOSING = threading.RLock()  # Hydra's plugins, its version base and its stored schema are the process's


@contextmanager
def _loader() -> Iterator[Any]:
    """Hydra's loader over `configs/`, apart from the state that a Hydra application keeps in this process.

    `hydra.initialize` would replace that application's own `GlobalHydra`. The version base is put back afterwards, and
    the schema is stored in a group of our own.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.version import VersionBase
    from packaging.version import Version

    with _COMPOSING:
        ConfigStore.instance().store(group="xtrrep", name="schema", node=Config)
        base = VersionBase.instance()
        before = base.version_base
        base.version_base = Version("1.3")
        try:
            yield ConfigLoaderImpl(create_config_search_path(str(places.config_dir())))
        finally:
            base.version_base = before


def _load(overrides: list[str]) -> DictConfig:
    """`configs/root.yaml` with its groups and overrides. Raises what Hydra and OmegaConf raise."""
    from hydra.types import RunMode

    with _loader() as loader:
        cfg = loader.load_configuration("root", overrides, RunMode.RUN, from_shell=False)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg  # type: ignore[no-any-return]


def _group_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split into group choices (checked against the files) and value overrides."""
    groups: list[str] = []
    values: list[str] = []
    chosen: dict[str, str] = {}
    for text in overrides:
        key, value = split_override(text)
        if key == "config" and value.endswith("_kd") and value.removesuffix("_kd") in options("config"):
            # The name a distilled model prints is a name that can be typed.
            text, value = f"config={value.removesuffix('_kd')}", value.removesuffix("_kd")
            values.append("stage=kd")
        if key not in GROUPS:
            values.append(text)
            continue
        if key == "data" and value not in options("data") and (same := same_collection(value)):
            text, value = f"data={same}", same
        if chosen.setdefault(key, value) != value:
            raise UsageError(f"{key} is given twice: {chosen[key]!r} and {value!r}", hint=f"give {key}= once")
        local = None
        if key == "data" and value not in options("data"):
            local = local_collection(value) or registered_collection(value) or hub_collection(value)
        if local:
            groups.append(local[0])
            values = local[1:] + values
        elif value not in options(key):
            kind = {"data": "collection", "index": "engine", "config": "config"}.get(key, key)
            hint = suggest(value, [*options(key), *([*registered(), *NANOBEIR] if key == "data" else [])])
            if key == "data" and (parts := parts_of(value)):
                hint = f"xtrrep eval data={value} gives the mean of its {len(parts)}; else name one, such as {parts[0]}"
            if key == "data" and value.startswith("beir/"):
                hint = f"{hint} A local BEIR folder $XTRREP_DATA/NAME serves beir/NAME/SPLIT."
            raise (DataError if key in ("data", "index") else UsageError)(
                f"no {kind} named {value!r} in this version", hint=hint
            )
        else:
            groups.append(text)
    placed = [text for text in overrides if text.startswith(("data.path=", "data.split="))]
    paths = [unwrapped(text.partition("=")[2]) for text in placed if text.startswith("data.path=")]
    if paths and chosen.get("data", "folder") == "folder":
        values = settings_of(collection_at(paths[-1])) + values
    if paths and "data" not in chosen:
        groups.append("data=folder")
    elif placed and chosen.get("data") != "folder":
        raise UsageError(
            f"{placed[0]!r} cannot change the named collection {chosen.get('data', 'pydoc/test')!r}",
            hint="another split is another data=ID; a folder is data.path=FOLDER data.split=SPLIT without data=",
        )
    return groups, values


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose and check the configuration.

    Raises UsageError for an unknown or ill-typed key, in a file or an override, with a suggestion, and DataError
    for an unknown collection or engine.
    """
    from hydra.errors import HydraException

    load_plugins()
    groups, values = _group_overrides(overrides)
    try:
        known = _known_keys(places.config_dir(), next((text for text in groups if text.startswith("index=")), None))
        check_keys(values, known)
        typed = _assemble(groups, values)
        check_index_types(values, known)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, values) from None
    if typed.data.id == "folder" and typed.data.path:
        typed.data.id = f"{Path(typed.data.path).expanduser().resolve().name}/{typed.data.split}"
    if typed.train.objective is Objective.released:
        typed.train.objective = _released_objective(typed)
    check_meaning(typed)
    return typed


def _assemble(groups: Sequence[str], values: Sequence[str]) -> Config:
    """The configuration, section by section, each composed by Hydra once a process for the same groups and values.

    Equal to one composition of everything: `data` and `index` are set by no other group, and no file refers to a key
    of another section (tests/test_config.py compares the two). A grid of cells composes each of its parts once.
    """
    shared = tuple(text for text in groups if not text.startswith(("data=", "index=")))
    parts = {}
    for item in fields(Config):
        name = item.name
        if name in ("data", "index"):
            own: tuple[str, ...] = tuple(text for text in groups if text.startswith(f"{name}="))
        else:
            own = shared
        set_here = tuple(text for text in values if text.partition("=")[0].partition(".")[0] == name)
        part = _of_file(places.config_dir(), own[0], set_here) if name in ("data", "index") and own else None
        if part is None:
            part = getattr(_composed(places.config_dir(), own, set_here), name)
        parts[name] = copy(part)
    return Config(**parts)


@cache
def _composed(folder: Path, groups: tuple[str, ...], values: tuple[str, ...]) -> Config:
    """What groups and values say, as objects: groups are read once, values set as Hydra sets them."""
    typed = OmegaConf.to_object(_set(deepcopy(_grouped(folder, groups)), values))
    if not isinstance(typed, Config):
        raise TypeError(f"composed a {type(typed).__name__}, not a Config")
    return typed


@cache
def _grouped(folder: Path, groups: tuple[str, ...]) -> DictConfig:
    return _load(list(groups))


@cache
def _of_file(folder: Path, group: str, values: tuple[str, ...]) -> Any:
    """The section `data` or `index` as its one file and the values say, in a thirtieth of the time that Hydra takes.
    None for a file with defaults of its own, and where anything is wrong: Hydra then says what."""
    from hydra.errors import HydraException

    key, _, choice = group.partition("=")
    try:
        read = OmegaConf.load(folder / key / f"{choice}.yaml")
        if isinstance(read, DictConfig) and "defaults" not in read:
            cfg = OmegaConf.create({key: OmegaConf.merge(OmegaConf.structured(Data), read) if key == "data" else read})
            section = OmegaConf.select(_set(cfg, values), key)
            return OmegaConf.to_container(section, structured_config_mode=SCMode.INSTANTIATE)
    except (OSError, YAMLError, HydraException, OmegaConfBaseException):
        return None  # the caller composes it whole, and that says what is wrong
    return None


def _set(cfg: DictConfig, values: tuple[str, ...]) -> DictConfig:
    """The configuration with values set as Hydra sets them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    for text in values:
        override = parser.parse_override(for_hydra(text))
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


@cache
def _known_keys(folder: Path, engine: str | None) -> dict[str, Any]:
    """Every key with its default, by the engine that is chosen: only `index` has no schema."""
    return flat(_load([engine] if engine else []))


def compose_with_origins(overrides: Sequence[str] = ()) -> tuple[Config, dict[str, str]]:
    """As `compose`, with the file (relative to `configs/`) or override that set each dotted key."""
    from hydra.types import RunMode

    typed = compose(overrides)
    groups, values = _group_overrides(overrides)
    with _loader() as loader:
        defaults = loader.compute_defaults_list("root", groups, RunMode.RUN)
    origins = dict.fromkeys(flat(typed), "schema default")
    for entry in defaults.defaults:
        if (
            entry.config_path and (places.config_dir() / f"{entry.config_path}.yaml").exists()
        ):  # not the schema, not Hydra's own
            for key in keys_of_file(entry.config_path, entry.package or ""):
                origins[key] = f"configs/{entry.config_path}.yaml"
    for text in values:
        key = split_override(text)[0]
        for full in origins:
            if full == key or full.startswith(key + "."):
                origins[full] = f"override {text}"
    return typed, origins


def _released_objective(cfg: Config) -> Objective:
    """What the released code trained a config's setup with (docs/protocol.md section 8)."""
    return Objective.authors_raw if cfg.setup == "I" and cfg.train.scorer is Scorer.xtr else Objective.authors
