"""Folders of imported vectors: arrays of every type and shape, and files that are no arrays."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz.harness import Reader, check_message, outcome_of
from fuzz.strategies import IDS, VALUES, Draw
from xtrrep.store import imported

DTYPES = ("<f4", ">f4", "<f2", "<f8", "<i4", "<c8", "S4", "<M8[us]", "bool", "O")
LENGTHS = {
    "lengths that do not add up": lambda lengths: [*lengths[:-1], lengths[-1] + 1],
    "negative length": lambda lengths: [*lengths, 3, -3],
    "lengths that wrap around": lambda lengths: [*lengths, 2**62, 2**62, 2**62, 2**62],
    "a length less": lambda lengths: lengths[:-1],
}
FLOATS = {
    "vector not finite": [np.nan, np.inf, -np.inf],
    "vector of zeros": [0.0],
    "vector not of unit length": [1e-20, 2.0, 1e30],
}
HEADERS = [
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 4), }}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4)}",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 4), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (4,), }",
    "{[]: 1}",
    "(" * 3000,
    "__import__('os').getcwd()",
    "",
]
IDS_JSON = [
    b"",
    b"{}",
    b"[1, 2]",
    b"null",
    b'["d0"',
    b"\xff\xfe",
    b"[" * 5000,
    b'["d0", "d0"]',
    b"[9" + b"9" * 5000 + b"]",
]


@dataclass(frozen=True)
class FolderCase:
    """`valid` says whether the folder must be read; None where only the bytes can tell."""

    kind: str
    ids: list[str]
    arrays: list[Any]
    files: dict[str, bytes]
    valid: bool | None


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _with_header(text: str, version: int) -> bytes:
    raw = text.encode()
    raw += b" " * (-(len(raw) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(raw).to_bytes(2, "little") + raw + bytes(32)


@st.composite
def folder_cases(draw: Draw) -> FolderCase:
    kinds = (
        "plain",
        "type",
        "shape",
        "ids.json",
        "ids missing",
        "npy header",
        "npz",
        "pickle",
        "cut short",
        "bytes changed",
    )
    kind = draw(st.sampled_from([*kinds, *LENGTHS, *FLOATS, *IDS, "fortran order", "documents without vectors"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = [
        draw(st.integers(0 if kind == "documents without vectors" else 1, 3)) for _ in range(draw(st.integers(1, 4)))
    ]
    lengths[0] = max(1, lengths[0])
    rows = rng.normal(size=(sum(lengths), 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = [f"d{n}" for n in range(len(lengths))]
    array: Any = rows
    valid: bool | None = True
    if kind == "type":
        dtype = draw(st.sampled_from(DTYPES))
        array = rows.astype("f8").astype(dtype) if dtype != "<M8[us]" else np.zeros(rows.shape, dtype)
        valid = dtype in DTYPES[:4]
    elif kind == "shape":
        array, valid = draw(st.sampled_from([rows[0], rows[None], np.float32(1.0)])), False
    elif kind in FLOATS:
        rows[draw(st.integers(0, len(rows) - 1))] = draw(st.sampled_from(FLOATS[kind]))
        valid = False
    elif kind == "fortran order":
        array = np.asfortranarray(rows)
    elif kind in IDS:
        name = draw(IDS[kind])
        ids[0] = name
        valid = isinstance(name, str) and name != "" and kind != "half surrogate in id"
    if kind in LENGTHS:
        lengths, valid = LENGTHS[kind](lengths), False
    files = {
        "00.npy": _npy(array),
        "00.doclens.npy": _npy(
            np.array(lengths, draw(st.sampled_from(["<i4", "<i8"])) if max(lengths, default=0) < 9 else "<i8")
        ),
        "ids.json": json.dumps(ids).encode(),
    }
    odd = draw(st.sampled_from(["00.npy", "00.doclens.npy"]))
    match kind:
        case "ids.json":
            files["ids.json"], valid = draw(st.sampled_from([*IDS_JSON, json.dumps(draw(VALUES)).encode()])), False
        case "ids missing":
            files["ids.json"], valid = (
                json.dumps([*ids, "more"][draw(st.sampled_from([slice(1, -1), slice(None)]))]).encode(),
                False,
            )
        case "npy header":
            files[odd] = _with_header(draw(st.sampled_from(HEADERS)), draw(st.sampled_from([1, 2, 3, 9])))
            valid = None
        case "npz":
            file = io.BytesIO()
            np.savez(file, a=rows)
            files[odd], valid = file.getvalue()[: draw(st.sampled_from([10, None]))], False
        case "pickle":
            files[odd], valid = pickle.dumps(rows), False
        case "cut short":
            files[odd], valid = files[odd][: draw(st.integers(0, len(files[odd]) - 1))], False
        case "bytes changed":
            at = draw(st.integers(0, len(files[odd]) - 1))
            files[odd] = files[odd][:at] + bytes([files[odd][at] ^ draw(st.integers(1, 255))]) + files[odd][at + 1 :]
            valid = None
    bounds = np.cumsum([0, *lengths]) if valid else []
    arrays = [np.asarray(array, np.float32)[a:b] for a, b in pairwise(bounds)] if valid else []
    return FolderCase(kind, ids, arrays, files, valid)


def check_folder(case: FolderCase, folder: Path) -> bool:
    """What is read is written as float16 unit vectors in the order given, and refusals name a file of the folder."""
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    for name, raw in case.files.items():
        (source / name).write_bytes(raw)
    read: list[tuple[str, Any]] = []

    def ours() -> None:
        for name, rows in imported.read(source):
            read.append((name, np.array(rows)))
        imported.write(out, iter(read), len(read))

    _, error = outcome_of(ours)
    if error is not None:
        assert not case.valid, f"refused what is fine: {error}"
        check_message(error, None if len(read) else str(source))  # a vector's fault is named by its document
        assert not (out / "ids.json").exists()
        return False
    assert case.valid is not False, f"accepted {case.kind}"
    if case.valid:
        assert [name for name, _ in read] == case.ids
        for (_, rows), wanted in zip(read, case.arrays, strict=True):
            assert np.array_equal(np.asarray(rows, np.float32), wanted)
    stored = np.concatenate([np.load(path) for path in sorted((out / "vectors").glob("?????.npy"))])
    wanted = np.concatenate([np.asarray(rows, np.float32) for _, rows in read])
    assert np.array_equal(stored, wanted.astype(np.float16))
    assert np.isfinite(stored).all()
    assert json.loads((out / "ids.json").read_text("utf-8")) == [name for name, _ in read]
    return True


READERS = [Reader("imported vectors", 800, folder_cases(), check_folder)]


def check_npy_bytes(raw: bytes, folder: Path) -> bool:
    files = {"00.npy": raw, "00.doclens.npy": _npy(np.array([1, 1])), "ids.json": b'["d0", "d1"]'}
    return check_folder(FolderCase("bytes", [], [], files, None), folder)


BYTE_READERS = {"vectors.npy": (check_npy_bytes, [_npy(np.eye(2, 4, dtype=np.float32))])}
