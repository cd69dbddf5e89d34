"""The pages that people read first are plain English: short sentences, without words that this project overused."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
UNREAD = ("LOG.md", "SCALE.md")  # a log, and a page that a script writes
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "results/recorded/README.md",
    *(str(path.relative_to(ROOT)) for path in DOCS if path.name not in UNREAD),
]
LONGEST = 30  # words
OVERUSED = {
    "told": r"\btold\b",
    "hands": r"\bhands\b",
    "at hand": r"\bat hand\b",
    "found, as a noun": r"\b(?:an?|the|our|its|their|each|every|no) found\b",
    "an ellipsis": r"\.\.\.|…",
}
NO_PROSE = ("|", "#", "!", "<", "    ")  # tables, headings, pictures, HTML and indented code


def paragraphs(page: str) -> Iterator[str]:
    """Paragraphs and list items of a Markdown page, each as one line, without code."""
    lines: list[str] = []
    fenced = False
    for line in [*page.splitlines(), ""]:
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        item = re.match(r"\s*(?:[-*]|\d+\.)\s+", line)
        ends = fence or fenced or item or not line.strip() or line.startswith(NO_PROSE)
        if ends and lines:
            yield plain(" ".join(lines))
            lines = []
        if item or not ends:
            lines.append(line[item.end() :] if item else line.strip())


def plain(text: str) -> str:
    """Without Markdown's marks. Inline code counts as one word, and a link as its text."""
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return text.replace("*", "")


def sentences(page: str) -> list[str]:
    return [sentence for text in paragraphs(page) for sentence in re.split(r"(?<=[.!?])\s+(?=\S)", text)]


def faults(page: str) -> list[str]:
    """Each sentence that is too long or has an overused word, with the reason."""
    listed = []
    for sentence in sentences(page):
        words = len(re.findall(r"[^\s—–-]\S*", sentence))
        if words > LONGEST:
            listed.append(f"{words} words: {sentence}")
        listed += [f"{name}: {sentence}" for name, pattern in OVERUSED.items() if re.search(pattern, sentence, re.I)]
    return listed


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_plain_english(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(sentences(text)) > 3
    assert not faults(text)


GENERATED = ("commands", "config", "engines", "python", "errors")  # pages that exist on the site alone


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *DOCS], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        generated = re.fullmatch(r"(?:\.\./)?reference/(\w+)\.md", target)
        known = generated and generated[1] in GENERATED
        assert known or target.startswith("https://") or (page.parent / target).exists(), target


FAULTY = """
# A heading of ... any kind

Within a tenth of that where training came to the very same weights,
within four times it, which is two points, where it came to others,
as it does on another processor or with another number of threads.

- What a hand says: it was told so...
- A document is at hand. The found is kept, and a scheduler hands units out.

| a table ... | is not read |
```sh
echo ... told  # and neither is code
```
"""


def test_faults_are_seen() -> None:
    assert [fault.split(":")[0] for fault in faults(FAULTY)] == [
        "38 words",
        "told",
        "an ellipsis",
        "at hand",
        "hands",
        "found, as a noun",
    ]


def test_lines_are_joined_and_code_and_links_are_short() -> None:
    page = "One `a b c` is\n[a link](https://example.org) here. Two\nis next.\n\n- Three: 1.5 is no end. Four.\n"
    assert sentences(page) == ["One code is a link here.", "Two is next.", "Three: 1.5 is no end.", "Four."]
