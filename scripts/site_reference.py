"""The reference pages of the documentation, made from the sources while mkdocs builds the site (`make docs`).

Nothing here is written to `docs/`: a page cannot be out of date. Verbs and options come from the command line itself,
keys from the schema and the engines' fields with the comment behind each (`# [unit] meaning`), errors from the calls
that raise them.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import xtrrep
from xtrrep import config, console
from xtrrep.config import schema
from xtrrep.retrieval.engines import engines

PACKAGE = Path(xtrrep.__file__).parent
PUBLIC = (  # beside `import xtrrep`, in the order of docs/API.md
    "xtrrep.retrieval.rank.xtr_rank",
    "xtrrep.train.xtr.XTRScores",
    "xtrrep.measure.run_file.read",
    "xtrrep.measure.run_file.write",
    "xtrrep.retrieval.engines.TokenEngine",
    "xtrrep.retrieval.engines.DocumentEngine",
    "xtrrep.retrieval.engines.TextEngine",
)
EXIT_CODES = {
    console.OK: "The command did what it says.",
    console.DIFFER: "`reproduce`: a value differs from the one that it is compared with.",
    console.USAGE: "The command or the configuration is wrong. Nothing was run.",
    console.MISSING: "Data, a model, an engine or an artifact is missing or broken, or a cell could not run.",
}


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: adds the pages to those of `docs/`."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def pages() -> dict[str, str]:
    return {
        "commands": commands(),
        "config": keys(),
        "engines": engine_parameters(),
        "python": python(),
        "errors": errors(),
    }


# --- Markdown -----------------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """Inline code of one line, whatever backticks it holds."""
    text = " ".join(text.split())
    fence = "``" if "`" in text else "`"
    return f"{fence}{' ' if '`' in text else ''}{text}{' ' if '`' in text else ''}{fence}" if text else ""


def words(text: str) -> str:
    """Text whose signs mean nothing in Markdown; `code` stays code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\\|<>*_\[\]])", r"\\\1", part) for part in parts)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- commands -----------------------------------------------------------------------------------------------------


def verbs() -> dict[str, Any]:
    """The verbs by name, without hidden aliases."""
    import typer

    from xtrrep.cli import app

    group: Any = typer.main.get_command(app)
    return {name: verb for name, verb in group.commands.items() if not verb.hidden}


def commands() -> str:
    lines = [
        "# Commands",
        "",
        "Each verb with its arguments and options, as `xtrrep VERB --help` prints them. `KEY=VALUE` stands for any key "
        "of the [configuration](config.md). `xtrrep eval` is short for `xtrrep evaluate`.",
    ]
    for name, verb in verbs().items():
        text, _, examples = (verb.help or "").partition("Example")
        lines += ["", f"## xtrrep {name}", "", *(words(part) for part in re.split(r"\n\s*\n", text.strip()))]
        listed = [example.strip() for example in re.split(r"\s\|\s", examples.partition(":")[2]) if example.strip()]
        if listed:
            lines += ["", "```text", *(" ".join(example.split()) for example in listed), "```"]
        rows = [[code(usage(item)), words(item.help or ""), default(item)] for item in verb.params]
        lines += ["", table(["argument or option", "meaning", "default"], rows)]
    return "\n".join(lines) + "\n"


def usage(item: Any) -> str:
    if item.param_type_name == "argument":
        return "KEY=VALUE ..." if item.name == "overrides" else item.name.upper()
    annotation = item.type_descriptor.annotation
    kind = {int: "N", float: "N", Path: "PATH"}.get(annotation, "TEXT")
    return " ".join([", ".join(item.opts), *([] if item.is_flag else [kind])])


def default(item: Any) -> str:
    if item.required:
        return "required"
    return "" if item.default in (None, False) or callable(item.default) else code(str(item.default))


# --- configuration ------------------------------------------------------------------------------------------------


def comments(owner: type) -> dict[str, tuple[str, str]]:
    """(unit, meaning) of each field or member of a class, from the comment behind it, or behind a base class's."""
    found: dict[str, tuple[str, str]] = {}
    for part in reversed(owner.__mro__[:-1]):
        if part.__module__.split(".")[0] != "xtrrep":
            continue
        for line in inspect.getsource(part).splitlines():
            if match := re.match(r"    (\w+)(?::| =) ?.*?  # (?:\[([^\]]+)\] )?(.*)", line):
                found[match[1]] = (match[2] or "", match[3])
    return found


def type_name(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(type_name(part) for part in get_args(kind))
    if kind is NoneType:
        return "null"
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return ", ".join(code(member.name) for member in kind)
    if get_origin(kind) is list:
        return f"list of {type_name(get_args(kind)[0])}"
    return {Any: "int or list"}.get(kind, getattr(kind, "__name__", str(kind)))


def sections(name: str = "", owner: type = schema.Config) -> Iterator[tuple[str, type]]:
    """Each section of the configuration with its class, a section before those in it; "" for the keys at the top."""
    yield name, owner
    for part, kind in get_type_hints(owner).items():
        if is_dataclass(kind):
            yield from sections(f"{name}.{part}".lstrip("."), kind)  # type: ignore[arg-type]


def keys() -> str:
    demo, paper = (config.flat(config.compose([f"scale={scale}"])) for scale in ("demo", "paper"))
    lines = [
        "# Configuration",
        "",
        "Every key of the configuration. Set one with `KEY=VALUE` on the command line. `xtrrep show` prints the value "
        "of each key and the file that set it. The keys of `index` are on the [page of the engines](engines.md).",
    ]
    chosen: dict[str, type] = {}
    for name, owner in sections():
        rows = []
        said, kinds = comments(owner), get_type_hints(owner)
        for item in fields(owner):
            kind = kinds[item.name]
            if is_dataclass(kind) or item.name == "index":
                continue
            chosen |= {part.__name__: part for part in [kind, *get_args(kind)] if isinstance(part, type(Enum))}
            key = f"{name}.{item.name}".lstrip(".")
            values = [json.dumps(values.get(key), ensure_ascii=False) for values in (demo, paper)]
            unit, meaning = said[item.name]
            shown = [code(value) for value in values]
            rows.append([code(key), words(meaning), unit, type_name(kind), shown[0]])
            rows[-1].append(shown[1] if values[0] != values[1] else "")
        lines += ["", f"## {name or 'At the top'}", ""]
        if owner.__doc__ and not owner.__doc__.startswith(f"{owner.__name__}("):
            lines += [words(owner.__doc__), ""]
        lines.append(table(["key", "meaning", "unit", "type", "default", "at scale=paper"], rows))
    lines += ["", "## Values with names", ""]
    rows = [
        [kind.__name__, code(member.name), words(comments(kind)[member.name][1])]
        for kind in chosen.values()
        for member in kind  # type: ignore[attr-defined]
    ]
    lines.append(table(["type", "value", "meaning"], rows))
    lines += ["", "## Groups", "", "A group sets many keys at once. These are its choices.", ""]
    rows = [[code(f"{group}="), ", ".join(map(code, config.options(group)))] for group in config.GROUPS]
    lines.append(table(["group", "choices"], rows))
    return "\n".join(lines) + "\n"


def engine_parameters() -> str:
    lines = [
        "# Parameters of the engines",
        "",
        "`index=NAME` chooses an engine, and `index.KEY=VALUE` changes one of its parameters. A parameter that "
        "only a search reads does not rebuild the index. [Engines](../engines.md) helps to choose one.",
    ]
    for name, entry in engines.entries().items():
        engine = entry.value
        if engine.__module__.split(".")[0] != "xtrrep":  # a part of yours
            continue
        presets = [choice for choice in config.options("index") if choice.split("/")[0] == name]
        values = {choice: config.choice_values("index", choice) for choice in presets}
        paper = f" ({words(entry.paper)})" if entry.paper else ""
        lines += ["", f"## {name}", "", f"{words(entry.summary)}{paper}.", ""]
        rows = []
        for item in fields(engine):
            unit, meaning = comments(engine)[item.name]
            when = "search" if item.name in engine.at_search else "build"
            when = "speed alone" if item.name in engine.speed_only else when
            kind = get_type_hints(engine)[item.name]
            rows.append([code(f"index.{item.name}"), words(meaning), unit, type_name(kind), when])
            rows[-1] += [code(json.dumps(values[choice].get(item.name))) for choice in presets]
        columns = ["key", "meaning", "unit", "type", "read by", *map(code, presets)]
        lines.append(table(columns, rows) if rows else "It has no parameters.")
    return "\n".join(lines) + "\n"


# --- Python -------------------------------------------------------------------------------------------------------


def python() -> str:
    named = [f"xtrrep.api.{name}" for name in sorted(xtrrep._API, key=str.lower)]
    lines = [
        "# Python",
        "",
        "Each function and class that is for use from Python. [From Python](../API.md) shows them at work.",
    ]
    for name in [*named, *PUBLIC]:
        shown = name.replace("xtrrep.api.", "xtrrep.")
        lines += ["", f"::: {name}", "    options:", f"      heading: {shown}", f"      toc_label: {shown}"]
    return "\n".join(lines) + "\n"


# --- errors -------------------------------------------------------------------------------------------------------


def errors() -> str:
    lines = [
        "# Exit codes and errors",
        "",
        "An error is one line on stderr that says what is wrong and where, and a line with a hint. These are all of "
        "them. A word in braces is a value that the message names.",
        "",
        "## Exit codes",
        "",
        table(["code", "meaning"], [[str(number), meaning] for number, meaning in EXIT_CODES.items()]),
        "",
        "Ctrl-C ends a command with 130. The same command continues.",
    ]
    for folder, found in raised().items():
        lines += ["", f"## {folder}", "", table(["exit", "message", "hint"], found)]
    return "\n".join(lines) + "\n"


def raised() -> dict[str, list[list[str]]]:
    """Rows of (exit code, message, hint) by folder of the package, one for each call that makes an error."""
    kinds = {"UsageError": console.USAGE, "DataError": console.MISSING}
    rows: dict[str, list[list[str]]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        folder = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds):
                continue
            hint = next((item.value for item in node.keywords if item.arg == "hint"), None)
            message = rendered(node.args[0]) if node.args else ""
            if re.search(r"\w", re.sub(r"\{\w*\}", "", message)):  # not one that only passes another's text on
                row = [str(kinds[node.func.id]), code(message), code(rendered(hint) if hint else "")]
                rows.setdefault(folder, []).append(row)
    return {folder: sorted(found, key=lambda row: row[1].lower()) for folder, found in sorted(rows.items())}


def rendered(node: ast.expr) -> str:
    """A message as the sources write it, `{name}` where a value is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(rendered, node.values))
    if isinstance(node, ast.FormattedValue):
        return rendered(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return rendered(node.left) + rendered(node.right)
    names = [part.attr if isinstance(part, ast.Attribute) else part.id for part in ast.walk(node)
             if isinstance(part, ast.Attribute | ast.Name)]  # fmt: skip
    return f"{{{names[0] if names else 'value'}}}"
