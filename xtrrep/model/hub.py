"""Repositories of the model hub: which commit a revision is, what it holds, and a model's files as a local folder.

A revision such as `main` moves. So a plan resolves each one to a commit, and the identity of weights and training data
is the content at that commit: the hashes the hub lists for its files. A change of the README alone leaves it as it was.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from xtrrep import config as configs
from xtrrep.artifacts import digest, write_json
from xtrrep.artifacts.hashes import hash_file
from xtrrep.console import DataError, machine_error, request_reason, say
from xtrrep.model import weights
from xtrrep.model.released import doubt, resolve

Kind = Literal["model", "dataset"]

# Settings, tokenizers and weights, at the top or in a module's own folder such as 2_Dense/.
_KEPT = {".json", ".txt", ".model", ".jinja", ".metadata", ".safetensors"}
LOCAL = "run where the hub can be reached, or name a local folder in its place; scale=demo needs no hub"
_PLACE = re.compile(r"(\d+_\w+/)?[^/]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
RECORDS = ".revisions"
WAITS = (1.0, 4.0)  # seconds before a download that broke off is gone on with


# --- commits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    """A commit of a hub repository, and a hash of what a run reads there: `wanted` files of a model, data files."""

    id: str
    content: str


_resolved: dict[tuple[str, str, str], Commit | None] = {}


def commit_of(kind: Kind, name: str, revision: str | None) -> Commit | None:
    """The commit that `revision` (None: main) names: as the hub says, else as this machine last saw it.

    None where neither knows. An answer is kept for the life of the process, so that all plans of one command agree.
    Raises DataError where the hub answers that it has no such repository or revision.
    """
    name, revision = resolve(name), revision or "main"
    key = (kind, name, revision)
    if key not in _resolved:
        known = last_used(kind, name, revision) if _COMMIT.fullmatch(revision) else None  # a commit never changes
        _resolved[key] = known or _ask(kind, name, revision)
        if found := _resolved[key]:
            _resolved[(kind, name, found.id)] = found
    return _resolved[key]


def forget() -> None:
    """Ask the hub again from here on."""
    _resolved.clear()


def remember(kind: Kind, name: str, revision: str | None) -> None:
    """Record the commit that a run uses, so that the same command can go on with it when it is resumed or offline."""
    name, revision = resolve(name), revision or "main"
    found = _resolved.get((kind, name, revision))
    if found is None:
        return
    asked = {asked for k, n, asked in _resolved if (k, n) == (kind, name) and _resolved[k, n, asked] == found}
    for each in asked:
        path = _record(kind, name, each)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))


def last_used(kind: Kind, name: str, revision: str | None) -> Commit | None:
    """The commit that the last run on this machine used for a revision; None where there was none."""
    try:
        return Commit(**json.loads(_record(kind, resolve(name), revision or "main").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or one that was damaged: the hub is asked again
        return None


def adopt(kind: Kind, name: str, revision: str | None, commit: Commit) -> None:
    """Use `commit` for a revision for the life of this process."""
    name = resolve(name)
    _resolved[(kind, name, revision or "main")] = _resolved[(kind, name, commit.id)] = commit


def _record(kind: str, name: str, revision: str) -> Path:
    return configs.artifacts_root() / RECORDS / f"{kind}--{name}--{revision}.json".replace("/", "--")


def _ask(kind: Kind, name: str, revision: str) -> Commit | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    known = last_used(kind, name, revision)
    if not weights.hub_reachable():
        return known or _of_cache(kind, name, revision)
    try:
        id = str(HfApi().resolve_revision(name, revision=revision, repo_type=kind).resolved)
        entries = HfApi().list_repo_tree(name, revision=id, recursive=True, repo_type=kind)
        return Commit(id, _content(kind, _hashes(entries)))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if known is not None:  # since deleted: what is finished here stays usable
            return known
        raise refused(kind, name, revision, error) from None
    except Exception as error:  # whatever the HTTP library under the client raises; its types change with it
        say(f"  note: the hub could not say what {name} is at {revision} ({request_reason(error)})")
        return known or _of_cache(kind, name, revision)


def _of_cache(kind: Kind, name: str, revision: str) -> Commit | None:
    """By the client's own cache: the commit an earlier download resolved a revision to."""
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, RevisionResolutionError

    try:
        api = HfApi()
        id = str(api.resolve_revision(name, revision=revision, repo_type=kind, local_files_only=True).resolved)
        return Commit(id, _content(kind, _hashes(get_cached_repo_tree(name, revision=id, repo_type=kind))))
    except (RevisionResolutionError, CachedRepoTreeNotFoundError, HFValidationError):
        return None


def _hashes(entries: Iterable[Any]) -> dict[str, str]:
    """File name -> hash, of the files of a listing."""
    files = [entry for entry in entries if hasattr(entry, "blob_id")]
    return {file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id for file in files}


def _content(kind: Kind, hashes: dict[str, str]) -> str:
    names = (
        wanted(list(hashes)) if kind == "model" else [n for n in hashes if not n.endswith((".md", ".gitattributes"))]
    )
    return digest({name: hashes[name] for name in names})


# --- models -------------------------------------------------------------------------------------------------------


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


def first_of(names: Sequence[str], revision: str | None) -> str:
    """The first of several model ids that the hub has, or of which this machine has a copy.

    Where neither is known of any, the first. Raises DataError where the hub has none of them.
    """
    refusal: DataError | None = None
    unknown: list[str] = []
    for name in names:
        try:
            commit = commit_of("model", name, revision)
        except DataError as error:
            refusal = error
            continue
        if commit is not None or cached_folder(name, revision) is not None:
            return name
        unknown.append(name)
    if unknown:
        return unknown[0]
    raise refusal or DataError("no model is named", hint=LOCAL)


def snapshot(name: str, revision: str | None) -> Path:
    """The local copy of a hub model, complete as far as `wanted` goes; what is missing is downloaded, with its bars.

    A complete copy of the commit is used without asking the hub. Raises DataError, saying what to do, where there is
    none and it cannot be fetched.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{name} at revision {revision}" if revision else name
    if revision and _COMMIT.fullmatch(revision) and (folder := cached_folder(name, revision)):
        return folder
    if not weights.hub_reachable():  # the client itself would try for half a minute
        return _cached(name, revision, at, "the model hub does not answer")
    problem = ""
    for wait in (*WAITS, None):
        try:
            files = wanted(HfApi().list_repo_files(name, revision=revision))
            there = cached_folder(name, revision)
            if there is None and not problem:
                say(f"  fetching {at} from the model hub")
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
            if there != folder:
                _verify(name, folder)
            return folder
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise refused("model", name, revision, error) from None
        except DataError:
            raise
        except Exception as error:  # whatever the HTTP library under the client raises; its types change with it
            if full := machine_error(error, "HF_HOME"):
                if copy := cached_folder(name, revision):
                    return copy
                raise full from error
            problem = f"the download failed ({request_reason(error)})"
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if wait is None or (400 <= status < 500 and status not in (408, 429)):
                break
            time.sleep(wait)
    return _cached(name, revision, at, problem)


def _verify(name: str, folder: Path) -> None:
    """Compare a fresh download with the hashes that the hub lists; its client only compares sizes.

    Raises DataError for a file with other bytes, which is deleted.
    """
    from huggingface_hub import get_cached_repo_tree

    listed = _hashes(get_cached_repo_tree(name, revision=folder.name))
    for file in wanted(list(listed)):
        path = folder / file
        if len(listed[file]) == 64:
            found = hash_file(path)
        else:  # a small file is listed by its hash in git
            data = path.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if found != listed[file]:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise DataError(
                f"{file} of {name} arrived with other bytes than the hub lists",
                hint="the same command fetches it again",
            )


def cached_folder(name: str, revision: str | None) -> Path | None:
    """An earlier download of a model, where it has every file that `wanted` names; None where it has not."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    try:
        # The client's own listing of the repository. Without the same filter as in the download, its check for
        # completeness would miss the files that are never fetched, such as ONNX copies.
        files = wanted([file.path for file in get_cached_repo_tree(name, revision=revision)])
    except (CachedRepoTreeNotFoundError, HFValidationError):
        files = None  # written by an older client, or not there
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=True))
    except (OSError, ValueError):
        return None


def refused(kind: Kind, name: str, revision: str | None, error: Exception) -> DataError:
    """What the hub's refusal means, with what to do."""
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    what, key = ("model", "model.revision") if kind == "model" else ("data set", "train.revision")
    if isinstance(error, GatedRepoError):
        return DataError(f"{name} is on the hub, but its owner must let you in", hint="hf auth login")
    if isinstance(error, RevisionNotFoundError):
        return DataError(f"the hub has no {name} at revision {revision}", hint=f"{key}=null takes the newest")
    return DataError(f"the hub has no public {what} {name}", hint=doubt(name) or LOCAL)


def _cached(name: str, revision: str | None, at: str, problem: str) -> Path:
    """An earlier download, or a DataError with the problem."""
    folder = cached_folder(name, revision)
    if folder is None:
        raise DataError(f"cannot fetch {at}: {problem}, and there is no copy on this machine", hint=LOCAL)
    return folder
