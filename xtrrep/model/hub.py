"""A hub model as a local folder, so that every layout is read by the same code wherever it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from xtrrep.console import DataError, say
from xtrrep.model import weights
from xtrrep.model.released import doubt, resolve

# Settings, tokenizers and weights, at the top or in a module's own folder such as 2_Dense/.
_KEPT = {".json", ".txt", ".model", ".jinja", ".metadata", ".safetensors"}
LOCAL = "run where the hub can be reached, or name a local folder in its place; scale=demo needs no hub"
_PLACE = re.compile(r"(\d+_\w+/)?[^/]+")


def folder_of(name: str | Path, revision: str | None) -> Path:
    """The folder of a package, path, short name or hub id; a hub id is downloaded into the hub's own cache.

    Raises DataError where a local name is not there, or where the hub has no such model or cannot be reached.
    """
    return weights.locate(str(name)) or snapshot(resolve(str(name)), revision)


def wanted(files: Sequence[str]) -> list[str]:
    """What of a repository a PyTorch model is read from: safetensors, or pickled tensors where there are none."""
    safe = {PurePosixPath(name).parent for name in files if name.endswith(".safetensors")}
    kept = []
    for name in filter(_PLACE.fullmatch, files):
        path = PurePosixPath(name)
        pickled = path.suffix == ".bin" and path.name.startswith("pytorch_model") and path.parent not in safe
        if pickled or path.suffix in _KEPT:
            kept.append(name)
    return kept


def snapshot(name: str, revision: str | None) -> Path:
    """The local copy of a hub model, complete as far as `wanted` goes; what is missing is downloaded, with its bars.

    Where the hub does not answer, an earlier download serves. Raises DataError, saying what to do, where neither does.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"{name} at revision {revision}" if revision else name
    if not weights.hub_reachable():  # the client itself would try for half a minute
        return _cached(name, revision, at, "the model hub does not answer")
    try:
        files = wanted(HfApi().list_repo_files(name, revision=revision))
        if not weights.is_cached(name, revision):
            say(f"  fetching {at} from the model hub")
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except GatedRepoError:
        raise DataError(f"{name} is on the model hub, but its owner must let you in", hint="hf auth login") from None
    except RevisionNotFoundError:
        raise DataError(f"the model hub has no {at}", hint="model.revision=null takes the newest") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise DataError(f"the model hub has no public model {name}", hint=doubt(name) or LOCAL) from None
    except Exception as error:  # whatever the HTTP library under the client raises; its types change with it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _cached(name, revision, at, f"the download failed ({reason})")


def _cached(name: str, revision: str | None, at: str, problem: str) -> Path:
    """An earlier download, or a DataError with the problem."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        raise DataError(f"cannot fetch {at}: {problem}, and there is no copy on this machine", hint=LOCAL) from None
