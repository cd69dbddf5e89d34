"""KEY=VALUE texts: split, refused where they mean nothing, and quoted for Hydra's grammar."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from typing import Any

from xtrrep.config.schema import Config, hints
from xtrrep.console import UsageError


def split_override(text: str) -> tuple[str, str]:
    if text[:1] in "+~":
        raise UsageError(
            f"{text!r}: adding (+) and deleting (~) keys is refused, since it would let a typo through",
            hint=f"write {text.lstrip('+~')!r} if the key exists; `xtrrep show` lists every key",
        )
    if "${" in text:
        raise UsageError(
            f"{text!r}: references (${{...}}) are refused: one to the environment would be stored with the result",
            hint="write the value itself",
        )
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is not a KEY=VALUE override", hint="for example retrieve.k_prime=1000")
    return key, value


def for_hydra(text: str) -> str:
    """The override as Hydra's grammar wants it. A text, and each text of a list, is taken as it was typed."""
    key, value = split_override(text)
    if value == "null":
        return text
    if is_text(key):
        return f"{key}={_quoted(unwrapped(value))}"
    if _is_list_of_texts(key) and value[:1] == "[":
        return f"{key}=[{','.join(map(_quoted, _items(text, value)))}]"
    if value[:1] in ("[", "{", "'", '"') or re.fullmatch(r"[\w./:+@%-]*", value, re.ASCII):
        return text
    return f"{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    """A text in quotes, where the grammar reads backslashes only before a quote."""
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    return "'" + re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped) + "'"


def unwrapped(value: str) -> str:
    """A value without the quotes that a shell left around all of it."""
    quote = value[:1]
    wrapped = len(value) > 1 and quote in ("'", '"') and value[-1] == quote and quote not in value[1:-1]
    return value[1:-1] if wrapped else value


def _items(text: str, value: str) -> list[str]:
    """The texts of `[A,B(x=1,y=2),"C"]`: commas within brackets or quotes belong to a text. Raises UsageError."""
    fault = UsageError(
        f"{text!r} cannot be read as a list", hint="is a bracket or a quote left open, or a text missing?"
    )
    if value[-1] != "]" or len(value) < 2:
        raise fault
    items: list[str] = []
    closing: list[str] = []
    start, inner = 0, value[1:-1]
    for at, sign in enumerate(inner):
        if closing and sign == closing[-1]:
            closing.pop()
        elif closing and closing[-1] in "'\"":
            continue
        elif sign in OPENING:
            closing.append(OPENING[sign])
        elif sign in ")]}":
            raise fault
        elif sign == "," and not closing:
            items.append(inner[start:at])
            start = at + 1
    if closing:
        raise fault
    items = [unwrapped(item.strip()) for item in (*items, inner[start:])] if inner.strip() else []
    if "" in items:
        raise fault
    return items


OPENING = {"(": ")", "[": "]", "{": "}", "'": "'", '"': '"'}


def _type_of(key: str) -> Any:
    """The type that the schema gives a dotted key; None where it gives none."""
    section, _, name = key.partition(".")
    owner = hints(Config).get(section)
    return hints(owner).get(name) if isinstance(owner, type) and is_dataclass(owner) else None


def is_text(key: str) -> bool:
    """Whether the schema says that a dotted key holds a text, so that 1e3 or a,b is one too."""
    return _type_of(key) in (str, str | None)


def _is_list_of_texts(key: str) -> bool:
    return _type_of(key) in (list[str], list[str] | None)
