"""Generators of odd texts, ids, values and bytes, by kind, and of files made of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

PLAIN = st.text(alphabet="abcdefgh ABC.,?!0123456789", max_size=30)
WORDS = st.sampled_from(["graph", "node of a tree", "shortest path?", "mean, variance", "a"])

TEXTS: dict[str, st.SearchStrategy[str]] = {
    "plain text": PLAIN,
    "empty text": st.sampled_from(["", " ", "\t", "\u3000", " \r\n ", "\u200b"]),
    "text of 1 MB": st.sampled_from(["word " * 200_000, "x" * 1_000_000, "é" * 500_000, " " * 1_000_000 + "end"]),
    "control characters": st.text(alphabet=[chr(c) for c in (*range(1, 32), 127, 0x85, 0x9B)], min_size=1, max_size=9),
    "NUL in text": st.sampled_from(["\0", "a\0b", "end\0"]),
    "right to left": st.sampled_from(["שלום עולם", "مرحبا بالعالم", "a \u202ereversed\u202c b", "\u200fמה?", "ﷺ"]),
    "emoji": st.sampled_from(["😀", "👩‍👩‍👧‍👦 family", "🇩🇪", "é vs é", "🏳️‍🌈" * 40, "e" + "\u0301" * 99]),
    "odd separators": st.sampled_from(["a\u2028b", "a\x85b", "a\x1cb\x1d", "a\rb", "a\nb", "a\tb\tc", "\ufeffa"]),
    "markup": st.sampled_from(["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "\\N", '"""', "${oc.env:HOME}"]),
    "any Unicode": st.text(max_size=20),
}
HALF = st.sampled_from(["\ud800", "a\udfffb", "\udc00\ud83d", "word \ud83d word"])

IDS: dict[str, st.SearchStrategy[Any]] = {
    "id that is a number": st.sampled_from([0, 7, -3, 2**70, 12345678901234567890]),
    "id of another type": st.sampled_from([True, False, None, 1.5, float("nan"), [], ["d0"], {}, {"_id": "d0"}]),
    "empty id": st.just(""),
    "id with white space": st.sampled_from(["a b", " a", "a\t", "a\n", "\u00a0a", "a\u2028b", "\x1c", "a\u3000b"]),
    "id with slashes": st.sampled_from(["a/b", "../../etc/passwd", "C:\\x", "/", "..", "http://x/?a=1#b", "~root"]),
    "NUL in id": st.sampled_from(["\0", "d0\0", "d0\0x", "a\0b"]),
    "half surrogate in id": HALF,
    "BOM in id": st.sampled_from(["\ufeffd0", "d0\ufeff", "\ufeff"]),
    "odd id": st.sampled_from(["😀", "שלום", "\x1b[31m", "#", "'", '"', "query-id", "qid", "null", "d" * 9999]),
}

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e38, 3.5e38, -1e39, 5e-324]),
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.sampled_from(
        ["", "x", "nDCG@10", "{0}", "{name}", "{name.x}", "{", "a,b", "2001-99-99", [], [[]], {}, [None], {"a": 1}]
    ),
    st.lists(st.one_of(st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@dataclass(frozen=True)
class FilesCase:
    """Files by name, and what is odd about them."""

    kind: str
    files: dict[str, bytes]

    def __repr__(self) -> str:
        shown = {name: content[:600] for name, content in self.files.items()}
        return f"FilesCase({self.kind!r}, {shown!r})"


# --- bytes: what any file of lines may suffer -------------------------------------------------------------------------


def _crlf(draw: Draw, raw: bytes) -> bytes:
    return raw.replace(b"\n", b"\r\n")


def _bom(draw: Draw, raw: bytes) -> bytes:
    return b"\xef\xbb\xbf" * draw(st.sampled_from([1, 1, 2])) + raw


def _utf16(draw: Draw, raw: bytes) -> bytes:
    return raw.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-16-be", "utf-32"])))


def _blank(draw: Draw, raw: bytes) -> bytes:
    return draw(st.sampled_from([b"\n", b" \n", b"\t\n", b"\r\n\n"])).join(part + b"\n" for part in raw.split(b"\n"))


def _no_last_newline(draw: Draw, raw: bytes) -> bytes:
    return raw.rstrip(b"\n")


def _cut(draw: Draw, raw: bytes) -> bytes:
    return raw[: draw(st.integers(0, len(raw)))]


def _twice(draw: Draw, raw: bytes) -> bytes:
    lines = raw.splitlines(keepends=True)
    return raw + draw(st.sampled_from(lines)) if lines else raw


def _insert(pieces: list[bytes]) -> Callable[[Draw, bytes], bytes]:
    def change(draw: Draw, raw: bytes) -> bytes:
        at = draw(st.integers(0, len(raw)))
        return raw[:at] + draw(st.sampled_from(pieces)) + raw[at:]

    return change


def _flip(draw: Draw, raw: bytes) -> bytes:
    out = bytearray(raw or b"?")
    for _ in range(draw(st.integers(1, 4))):
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(0, 255))
    return bytes(out)


ODD_LINES = [
    *(b"[" * 3000, b"9" * 5000, b'{"a":' * 2000, b'{"_id": ' + b"9" * 5000 + b', "text": "x"}'),
    *(b"{}", b"[]", b"null", b'"x"', b"NaN", b"{", b"\0", b"\t", b"\t\t", b"\x1c", b"a b c d e f"),
]


def _odd_line(draw: Draw, raw: bytes) -> bytes:
    line = draw(st.sampled_from(ODD_LINES))
    lines = raw.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines)))
    return b"".join([*lines[:at], line + b"\n", *lines[at:]])


BYTES: dict[str, Callable[[Draw, bytes], bytes]] = {
    "CRLF": _crlf,
    "BOM": _bom,
    "UTF-16 or 32": _utf16,
    "blank lines": _blank,
    "no last newline": _no_last_newline,
    "cut short": _cut,
    "a line twice": _twice,
    "not UTF-8": _insert([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"]),
    "stray bytes": _insert([b"\0", b"\r", b"\t", b'"', b"\\", b"\\ud800", b"\n", b"\xc2\x85", b"\xe2\x80\xa8"]),
    "bytes changed": _flip,
    "odd line": _odd_line,
}


def gz_kinds(draw: Draw, raw: bytes) -> dict[str, bytes]:
    """A gzip file: whole, cut short, damaged, or with something after it."""
    whole = gzip.compress(raw, mtime=0)
    at = draw(st.integers(0, len(whole) - 1))
    return {
        "gz": whole,
        "gz cut short": whole[:at],
        "gz damaged": whole[:at] + bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))]) + whole[at + 1 :],
        "gz with a tail": whole + draw(st.sampled_from([b"\0\0", b"tail", gzip.compress(b"", mtime=0)])),
        "gz that is none": raw,
    }


GZ = ("gz", "gz cut short", "gz damaged", "gz with a tail", "gz that is none")


def json_line(draw: Draw, row: Any) -> bytes:
    """A row as one line of JSON, with characters as they are or as escapes."""
    text = json.dumps(row, ensure_ascii=draw(st.booleans()))
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair can only stand there as an escape
        return json.dumps(row).encode() + b"\n"


def odd_row(draw: Draw, row: dict[str, Any]) -> dict[str, Any]:
    """A row with a field gone, renamed, added, or of another type."""
    out = dict(row)
    key = draw(st.sampled_from(sorted(out)))
    match draw(st.sampled_from(["gone", "renamed", "added", "of another type"])):
        case "gone":
            del out[key]
        case "renamed":
            out[key.upper()] = out.pop(key)
        case "added":
            out["metadata"] = draw(VALUES)
        case _:
            out[key] = draw(VALUES)
    return out


ROW_KINDS = ("odd field",)
