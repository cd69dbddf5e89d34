"""A teacher's scores for the candidates of a collection's queries, to distil from where no hub has them ready.

The study distils from bge-reranker-v2-gemma, a cross-encoder of 2.5 billion parameters that only the model hub has. The
teacher of `scale=demo`, all-mpnet-base-v2, is a bi-encoder: it embeds query and document apart and scores them by their
cosine. It is weaker than a cross-encoder, but much stronger than the student it teaches, it comes from the package
registry, and it reads each text once, where a cross-encoder reads every pair. Its cosines fill a narrow band; the
min-max of the distillation loss takes that scale out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from xtrrep.artifacts import need_space, write_atomic
from xtrrep.artifacts.locks import lock
from xtrrep.config import Precision
from xtrrep.console import DataError, machine_error, progress, say
from xtrrep.data import Collection
from xtrrep.data.scored import Candidates, choose
from xtrrep.model import weights
from xtrrep.model.encoder import device_of, quiet
from xtrrep.model.layout import is_multi_vector
from xtrrep.model.precision import resolve_precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FILE = "scored.jsonl"
QUERY_TOKENS = 32  # of a pair that a cross-encoder reads, beside the document's
INFLATED = 8  # a zip that grows more than this many times is no model
AGAIN = "install its packages again: pip install --force-reinstall --no-deps"


def score(
    collection: Collection,
    out: Path,
    *,
    teacher: str,
    n_ways: int,
    max_queries: int | None,
    seed: int,
    depth: int = 30,
    n_doc: int = 300,
    precision: Precision = Precision.fp32,
    batch_size: int = 32,
    device: str,
    cache: Path,
    revision: str | None = None,
) -> dict[str, Any]:
    """Write `scored.jsonl` (query, documents, scores; texts in full) into `out`, one list of `n_ways` a query.

    `data.scored.choose` says which candidates: a judged positive first, then hard and, where those run out, random
    negatives. `teacher` is a zipped model of `weights.ARCHIVES` (unpacked once into `cache`), a local folder or a hub
    id, of a SentenceTransformer (cosine of the pooled embeddings, each text embedded once) or of a CrossEncoder with
    one output (its raw logit). The teacher reads the first `n_doc` tokens of a text, or as many as it has positions
    for. Scores are rounded to six decimals, and on a CPU the same at every run.

    Returns facts: `lists`, `candidates`, `random_candidates`, `texts` or `pairs` the teacher read, `teacher` (its
    kind), `precision`, `device` and `rate` (texts or pairs a second). Raises DataError where the teacher is missing,
    broken, of another kind, or gives a score that is not finite, and for a collection `choose` refuses.
    """
    device = device_of(device)
    precision = resolve_precision(precision, device)
    place = _place(teacher, cache)
    cross = _is_cross_encoder(place, revision)
    model = _load(place, cross, n_doc, device, revision)
    lists, filled = choose(collection, n_ways=n_ways, max_queries=max_queries, seed=seed, depth=depth)
    scorer = _score_pairs if cross else _score_by_cosine
    start = time.monotonic()
    with _autocast(device, precision):
        scores, read = scorer(model, lists, batch_size)
    seconds = time.monotonic() - start

    def write(file: Any) -> None:
        for item, row in zip(lists, scores, strict=True):
            line = {"query": item.query, "documents": item.documents, "scores": row}
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    _check(teacher, lists, scores)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / FILE, write)
    return {
        "lists": len(lists),
        "candidates": n_ways,
        "random_candidates": filled,
        "pairs" if cross else "texts": read,
        "teacher": "cross-encoder" if cross else "bi-encoder",
        "precision": precision.value,
        "device": device,
        "rate": round(read / max(seconds, 1e-9), 1),
    }


def _autocast(device: str, precision: Precision) -> Any:
    import torch

    dtype = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}.get(precision)
    return torch.autocast(device.split(":")[0], dtype=dtype) if dtype else nullcontext()


def _check(teacher: str, lists: Sequence[Candidates], scores: Sequence[Sequence[float]]) -> None:
    import numpy as np

    bad = np.argwhere(~np.isfinite(np.array(scores, dtype=np.float64)))
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(
            f"the teacher {teacher} scores {lists[row].query!r} with candidate {column + 1} as {scores[row][column]}",
            hint="another distill.teacher, or this one in fp32",
        )


# --- scoring ------------------------------------------------------------------------------------------------------


def _score_by_cosine(model: Any, lists: Sequence[Candidates], batch_size: int) -> tuple[list[list[float]], int]:
    queries = list(dict.fromkeys(item.query for item in lists))
    documents = list(dict.fromkeys(text for item in lists for text in item.documents))
    total = len(queries) + len(documents)
    with progress(total, "teacher embeds", "text") as bar:
        # The teacher's own prompts, where it has some, come with encode_query and encode_document.
        query_vectors = _embed(model.encode_query, queries, batch_size, bar)
        document_vectors = _embed(model.encode_document, documents, batch_size, bar)
    query_rows = {text: row for row, text in enumerate(queries)}
    document_rows = {text: row for row, text in enumerate(documents)}
    scores = []
    for item in lists:
        candidates = document_vectors[[document_rows[text] for text in item.documents]]
        cosines = candidates @ query_vectors[query_rows[item.query]]
        scores.append([round(float(cosine), 6) for cosine in cosines])
    return scores, total


def _embed(encode: Callable[..., Any], texts: Sequence[str], batch_size: int, bar: Any) -> NDArray[np.float32]:
    """Unit vectors (texts, dim)."""
    import numpy as np

    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
    for batch in _batches([len(text) for text in texts], batch_size):
        rows = encode([texts[i] for i in batch], batch_size=len(batch), show_progress_bar=False)
        for i, row in zip(batch, np.asarray(rows, np.float32), strict=True):
            # Once more in float32: under autocast the vectors come out a little off unit length.
            found[i] = row / np.linalg.norm(row)
        bar.update(len(batch))
    return np.stack(found)


def _score_pairs(model: Any, lists: Sequence[Candidates], batch_size: int) -> tuple[list[list[float]], int]:
    import torch

    pairs = [(item.query, text) for item in lists for text in item.documents]
    flat = [0.0] * len(pairs)
    with progress(len(pairs), "teacher scores", "pair") as bar:
        for batch in _batches([len(query) + len(text) for query, text in pairs], batch_size):
            # Not the model's sigmoid, which presses the best candidates of a list together.
            logits = model.predict(
                [pairs[i] for i in batch],
                batch_size=len(batch),
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
            )
            for i, logit in zip(batch, logits, strict=True):
                flat[i] = round(float(logit), 6)
            bar.update(len(batch))
    rows, at = [], 0
    for item in lists:
        rows.append(flat[at : at + len(item.documents)])
        at += len(item.documents)
    return rows, len(pairs)


def _batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Positions in batches, longest first, so that a batch pads little and memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


# --- finding and loading the teacher ------------------------------------------------------------------------------


def _place(teacher: str, cache: Path) -> str:
    """A local folder, or the hub id."""
    if teacher in weights.ARCHIVES:
        return str(unpack(weights.archive_parts(teacher), weights.ARCHIVES[teacher].sha256, cache, teacher))
    return str(weights.locate(teacher) or teacher)


def _settings(place: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the model, empty where it has none of that name."""
    if Path(place).is_dir():
        path = Path(place) / name
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(place, name, revision=revision))
        except EntryNotFoundError:
            return {}
        except Exception as error:  # the hub's client and its HTTP library each raise their own kinds
            raise machine_error(error, "HF_HOME") or _cannot_load(place, error) from None
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})", hint="fetch the teacher again") from None
    return content if isinstance(content, dict) else {"modules": content}


def _is_cross_encoder(place: str, revision: str | None) -> bool:
    """Whether a SentenceTransformer or a CrossEncoder lies there. Raises DataError for a multi-vector model."""
    if Path(place).is_dir() and is_multi_vector(Path(place)):
        raise DataError(
            f"the teacher {place} is a multi-vector model, which gives no vector for a text",
            hint="distill.teacher=NAME of a SentenceTransformer or a CrossEncoder",
        )
    kind = _settings(place, "config_sentence_transformers.json", revision).get("model_type")
    if kind is not None or _settings(place, "modules.json", revision):
        return bool(kind == "CrossEncoder")
    # Cross-encoders older than sentence-transformers 4 are plain classifiers with one label.
    names = _settings(place, "config.json", revision).get("architectures") or []
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def _load(place: str, cross: bool, n_doc: int, device: str, revision: str | None) -> Any:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    quiet()
    kind = CrossEncoder if cross else SentenceTransformer
    try:
        model = kind(place, device=device, revision=None if Path(place).is_dir() else revision)
    except Exception as error:  # safetensors, the tokenizer, the hub's client: each raises its own kinds
        raise machine_error(error, "HF_HOME") or _cannot_load(place, error) from None
    if cross and model.num_labels != 1:
        raise DataError(
            f"the teacher {place} has {model.num_labels} outputs, and a score is one",
            hint="distill.teacher=NAME of a reranker: a CrossEncoder with one output",
        )
    wanted = n_doc + QUERY_TOKENS if cross else n_doc
    model.max_seq_length = min(wanted, model.max_seq_length or wanted)
    return model


def _cannot_load(place: str, error: Exception) -> DataError:
    reason = str(error).strip().partition("\n")[0]
    return DataError(
        f"cannot load the teacher {place} ({type(error).__name__}: {reason})",
        hint="a complete local folder, a hub id with a network, or " + ", ".join(weights.ARCHIVES),
    )


# --- unpacking ----------------------------------------------------------------------------------------------------


def unpack(parts: Sequence[Path], sha256: str, cache: Path, name: str) -> Path:
    """The folder in `cache` that holds what a zip in several parts holds; made once, by one process at a time.

    The folder appears whole or not at all. Raises DataError where the joined parts have another SHA-256, a member
    leads out of the folder, or the disk is too small.
    """
    folder = cache / f"{name.rpartition('/')[2]}-{sha256[:12]}"
    if folder.is_dir():
        return folder
    with lock(cache / f".{folder.name}.lock", name):
        if folder.is_dir():
            return folder
        for stale in cache.glob(f".{folder.name}-*"):  # of a killed process: the lock is ours
            shutil.rmtree(stale)
        size = sum(part.stat().st_size for part in parts)
        need_space(cache, 3 * size, f"unpacking {name}")
        say(f"  unpacking {name} ({size / 1e6:.0f} MB) into {cache}")
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=cache) as work:
            archive, files = Path(work) / "joined.zip", Path(work) / "files"
            _join(parts, sha256, archive, name)
            _extract(archive, files, name)
            inside = list(files.iterdir())
            root = inside[0] if len(inside) == 1 and inside[0].is_dir() else files
            os.replace(root, folder)
    return folder


def _join(parts: Sequence[Path], sha256: str, archive: Path, name: str) -> None:
    sha = hashlib.sha256()
    with archive.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    sha.update(block)
                    whole.write(block)
    if sha.hexdigest() != sha256:
        raise DataError(
            f"the parts of {name} are damaged: their SHA-256 is {sha.hexdigest()[:12]}, not {sha256[:12]}",
            hint=AGAIN,
        )


def _extract(archive: Path, files: Path, name: str) -> None:
    files.mkdir()
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for member in members:
                path = PurePosixPath(member.filename)
                linked = stat.S_ISLNK(member.external_attr >> 16)
                if path.is_absolute() or ".." in path.parts or "\\" in member.filename or linked:
                    raise DataError(f"{name} holds {member.filename!r}, which leads out of its folder", hint=AGAIN)
            total = sum(member.file_size for member in members)
            if total > INFLATED * archive.stat().st_size:
                raise DataError(
                    f"{name} would unpack to {total / 1e6:.0f} MB, which is too large for a model", hint=AGAIN
                )
            with progress(total, "unpack", "B") as bar:
                for member in members:
                    content.extract(member, files)
                    bar.update(member.file_size)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{name} is not a zip archive ({error})",
            hint=AGAIN,
        ) from None
