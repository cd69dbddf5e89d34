"""The choices of each group: a file in `configs/`, or a part from outside the package."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xtrrep.config import places
from xtrrep.config.schema import flatten

_added: dict[str, dict[str, dict[str, Any]]] = {}  # by group and choice, the values of parts that have no file here


def add_option(group: str, name: str, values: dict[str, Any]) -> None:
    """A choice of a group for which `configs/` has no file: a part from outside the package."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=group, name=name, node=values)
    _added.setdefault(group, {})[name] = values


def options(group: str) -> list[str]:
    """Every choice of a group, e.g. `beir/nfcorpus/test` of `data`."""
    return sorted(_files_of(places.config_dir() / group) | _added.get(group, {}).keys())


@cache
def _files_of(folder: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def choice_values(group: str, name: str) -> dict[str, Any]:
    """What a choice of a group sets."""
    if name in _added.get(group, {}):
        return _added[group][name]
    content = OmegaConf.to_container(OmegaConf.load(places.config_dir() / group / f"{name}.yaml"))
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def keys_of(group: str) -> set[str]:
    """The dotted keys that any choice of a group sets."""
    files = (places.config_dir() / group).rglob("*.yaml")
    return {key for path in files for key in dict(flatten(OmegaConf.to_container(OmegaConf.load(path))))}


def keys_of_file(name: str, package: str) -> list[str]:
    content = OmegaConf.to_container(OmegaConf.load(places.config_dir() / f"{name}.yaml"))
    if not isinstance(content, dict):
        return []
    content.pop("defaults", None)
    prefix = "" if package in ("", "_global_") else package
    return [key for key, _ in flatten(content, prefix)] if content else []


def engines_with(key: str) -> list[str]:
    """The engines that a parameter `index.NAME` belongs to."""
    group, _, name = key.partition(".")
    choices = [choice for choice in options("index") if group == "index" and "/" not in choice]
    return [choice for choice in choices if name in choice_values("index", choice)]
