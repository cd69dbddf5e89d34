"""The model card of a saved model: what it is, how it was made, what it scored, how to load it with no code of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xtrrep.artifacts import write_atomic
from xtrrep.console import DataError

NAME = "README.md"

REQUIRED = ("name", "scorer")
OPTIONAL = (
    "k_train",  # one number, or several
    "sparse_as",  # the study's k_train of the same sparsity, where that is another
    "objective",  # stated or authors
    "setup",
    "config",
    "stage",
    "scale",
    "base_model",
    "base_revision",
    "data",  # a text, or several
    "dim",
    "n_query",
    "n_doc",
    "steps",
    "command",  # what trains it again
    "settings",  # the whole semantic config, as plain values
    "fingerprint",
    "temperature",  # {first, last}
    "loss",  # {first, last, ln_pool}
    "verdict",  # what is to be said about the run, such as a divergence
    "scores",  # rows of SCORE
    "license",
    "language",
    "date",
)
SCORE = ("data", "engine", "scoring", "k_prime", "measure", "value", "interval")

_OBJECTIVE = {
    "stated": "The score of a document is the mean of its retrieved maxima over the query tokens that retrieved "
    "something of it (the paper's equation).",
    "authors": "The score is that of the authors' released code: a retrieved similarity below zero counts as zero, and "
    "the sum is divided by the number of positive maxima, at least 0.001.",
}


def write_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `README.md` into a saved model's folder, whole or not at all.

    `facts` must have REQUIRED and may have OPTIONAL keys; the card says nothing of what is missing or None. The same
    facts give the same bytes: the only date is `facts["date"]`. Raises ValueError for a key that is not listed, and
    DataError where the folder is not there.
    """
    unknown = sorted(set(facts) - {*REQUIRED, *OPTIONAL})
    missing = [key for key in REQUIRED if facts.get(key) is None]
    if unknown or missing:
        raise ValueError(f"facts of a model card: unknown {unknown}, missing {missing}")
    if not folder.is_dir():
        raise DataError(f"there is no model folder {folder} to write a card into", hint="save the model first")
    text = render({key: value for key, value in facts.items() if value is not None})
    write_atomic(folder / NAME, lambda file: file.write(text.encode()))


def render(facts: Mapping[str, Any]) -> str:
    """The card's text, front matter first."""
    sections = [
        f"---\n{_yaml(_front_matter(facts))}---",
        f"# {_plain(facts['name'])}",
        _what(facts),
        _verdict(facts),
        _use(facts),
        _training(facts),
        _scores(facts),
        _limits(facts),
        _settings(facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(facts: Mapping[str, Any]) -> dict[str, Any]:
    tags = ["sentence-transformers", "multi-vector", "late-interaction", facts["scorer"], "xtrrep"]
    matter: dict[str, Any] = {"library_name": "sentence-transformers", "pipeline_tag": "feature-extraction"}
    matter["tags"] = [str(tag) for tag in tags]
    for key in ("language", "license"):
        if key in facts:
            matter[key] = facts[key]
    base = str(facts.get("base_model", ""))
    # Only a hub id may stand here: hubs refuse a card whose base_model they cannot look up.
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base, re.ASCII) and not base.startswith(("pypi/", ".")):
        matter["base_model"] = base
    return matter


def _what(facts: Mapping[str, Any]) -> str:
    """In words: which of the two models, and what its training asked for."""
    dim = f" {facts['dim']}-dimensional" if "dim" in facts else ""
    tokens = f"It turns a text into one{dim} unit vector a token."
    base = f" It was trained from {_code(_shorten(facts['base_model']))}." if "base_model" in facts else ""
    if facts["scorer"] != "xtr":
        return (
            f"A ColBERT model for retrieval by late interaction. {tokens}{base}\n\n"
            "A document's score is the sum, over the query's tokens, of their best similarity to any of its tokens "
            "(MaxSim); it was trained on that score."
        )
    ks = facts.get("k_train")
    several = isinstance(ks, Sequence) and not isinstance(ks, str)
    many = ", ".join(str(k) for k in ks) if several and ks is not None else str(ks)
    pool = f"the {many} (`k_train`) tokens" if ks is not None and not several else "the `k_train` tokens"
    text = (
        f"An XTR model (conteXtualized Token Retriever) for retrieval by late interaction. {tokens}{base}\n\n"
        f"In training a document counted only through its tokens among {pool} of the whole batch that are most similar "
        "to a query token, so that the tokens a search retrieves are the ones that matter."
    )
    if several:
        text += f" `k_train` took the values {many}, each with the same weight."
    return " ".join([text, *([_OBJECTIVE[facts["objective"]]] if facts.get("objective") in _OBJECTIVE else [])])


def _verdict(facts: Mapping[str, Any]) -> str:
    return f"> **Note.** {_plain(facts['verdict'])}" if "verdict" in facts else ""


def _use(facts: Mapping[str, Any]) -> str:
    text = """## Use

With plain sentence-transformers, 6.2 or later:

```python
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder("FOLDER")  # this folder
queries = model.encode_query(["shortest path between two nodes"])
documents = model.encode_document(["Dijkstra's algorithm finds it.", "A stride is a number of bytes."])
print(model.similarity(queries, documents))  # MaxSim, one row a query
```"""
    if facts["scorer"] == "xtr":
        text += (
            "\n\n`similarity` is MaxSim over all tokens. XTR's own score needs a search: the best k' tokens of the "
            "collection for each query token, and an imputed score for a document that has none of them."
        )
    return text


def _training(facts: Mapping[str, Any]) -> str:
    rows: list[tuple[str, str]] = []
    names = [key for key in ("setup", "config", "stage", "scale") if key in facts]
    if names:
        rows.append((" / ".join(names), " / ".join(_plain(facts[key]) for key in names)))
    if "base_model" in facts:
        revision = f" at {_code(facts['base_revision'])}" if "base_revision" in facts else ""
        rows.append(("trained from", _code(_shorten(facts["base_model"])) + revision))
    data = facts.get("data", [])
    rows += [("training data", _plain(_shorten(item))) for item in ([data] if isinstance(data, str) else data)]
    rows += [(label, str(facts[key])) for key, label in (("steps", "steps"), ("k_train", "k_train")) if key in facts]
    if "sparse_as" in facts:
        rows.append(("as sparse as, in the study's batch, k_train", _plain(facts["sparse_as"])))
    if "temperature" in facts:
        value = facts["temperature"]
        rows.append(("temperature, first and last", f"{_number(value['first'])} and {_number(value['last'])}"))
    if "loss" in facts:
        value = facts["loss"]
        text = f"{_number(value['first'])} and {_number(value['last'])}"
        rows.append(("loss, first and last", text))
        if value.get("ln_pool") is not None:
            rows.append(("loss of a guess, ln(pool)", _number(value["ln_pool"])))
    lengths = [f"{what} {facts[key]}" for key, what in (("n_query", "query"), ("n_doc", "document")) if key in facts]
    if lengths:
        rows.append(("lengths in tokens", ", ".join(lengths)))
    if "fingerprint" in facts:
        rows.append(("fingerprint", _code(facts["fingerprint"])))
    if "date" in facts:
        rows.append(("date", _plain(facts["date"])))
    again = [_fenced(str(facts["command"]), "sh")] if "command" in facts else []
    return "\n\n".join(["## Training", _table(("what", "value"), rows), *again]) if rows else ""


def _scores(facts: Mapping[str, Any]) -> str:
    rows = []
    for score in facts.get("scores", []):
        if set(score) - set(SCORE) or "value" not in score:
            raise ValueError(f"a score of a model card has the keys {SCORE}, not {tuple(score)}")
        texts = [_plain("—" if score.get(key) is None else score[key]) for key in SCORE[:-2]]
        value, interval = score["value"], score.get("interval")
        reach = "—" if interval is None else "{:.4f} to {:.4f}".format(*interval)
        rows.append((*texts, "—" if value is None else f"{value:.4f}", reach))
    if not rows:
        return ""
    said = "Measured with xtrrep on this very model. An interval is of 95 %, from a bootstrap over the queries."
    return f"## Measured scores\n\n{said}\n\n" + _table(SCORE, rows)


def _limits(facts: Mapping[str, Any]) -> str:
    points = [
        "Scores of two queries cannot be compared with each other; only the order within one query means anything."
    ]
    if "n_query" in facts and "n_doc" in facts:
        points.append(
            f"A query is cut at {facts['n_query']} tokens and a document at {facts['n_doc']}, special tokens included."
        )
    if facts.get("scale") == "demo":
        points.append("Trained at `scale=demo`, in minutes on a laptop: it shows that the method works, no more.")
    if not facts.get("scores"):
        points.append("Nothing was measured on this model yet.")
    points.append("It ranks texts by what its training data called relevant, with that data's language and biases.")
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _settings(facts: Mapping[str, Any]) -> str:
    if "settings" not in facts:
        return ""
    return "## Every setting\n\n" + _fenced(_yaml(_short_values(facts["settings"])), "yaml")


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000))


def _short_values(value: Any) -> Any:
    """The same settings without this machine's folders: of a path, its name stays."""
    if isinstance(value, Mapping):
        return {str(key): _short_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short_values(inner) for inner in value]
    return _shorten(value) if isinstance(value, str) else value


def _shorten(text: Any) -> str:
    text = str(text)
    return f"…/{Path(text).name}" if text.startswith(("/", "~")) else text


def _plain(value: Any) -> str:
    """A text in one line of Markdown, with nothing in it that Markdown or HTML would read."""
    text = " ".join(str(value).split())
    text = re.sub(r"([\\`*\[\]#]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(value: Any) -> str:
    """A code span in one line, its fence longer than any run of backticks inside."""
    text = " ".join(str(value).split())
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(len(run) for run in re.findall("`+", text)))
    return f"{fence} {text} {fence}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.6g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
