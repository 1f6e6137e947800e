"""Texts that people read avoid habits that make a reader stop, and keep to 110 columns.

Read are docstrings, comments and strings of the packages, comments of the .proto files, and pages. Not read:
the log of experiments and the results, which are of their day.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for folder, kind in (("engine", "*.py"), ("kernels", "*.py"), ("proto", "*.proto"))
    for path in (ROOT / folder).rglob(kind)
)
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/decisions/*.md", "kernels/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if path != ROOT / "docs/LOG.md"
)

COMPARED = (
    r"(?:longer|more|less|fewer|later|earlier|larger|smaller|higher|lower|worse|better|faster|slower|greater)"
)
NO_DOUBT = r"(?:other|different|one|such)"

HABITS = {
    r"\bso (?:many|much|few|long)\b(?! (?:that|as)\b)": "name the parameter: a prompt of `n_tokens` tokens",
    r"\b(?:no|some|any|every)body\b|\bwho(?:m)?ever\b": "say who it is, or write no one, everyone, anyone",
    r"\banew\b|\bafresh\b": "again",
    r"\b(?:that|those|one|ones|size|value) of before\b": "the old one",
    rf"(?<![Tt]here )\b(?:is|are|was|were) no (?!{COMPARED}\b|{NO_DOUBT}\b)": "is not a valid address",
    r"\b(?:except|only|unless|even) where (?:it|there|this|that|they|none|nothing|all|no)\b": "if",
    r"[.;:] Where (?!to\b)[^.;:?]{1,80}, ": "if: where is for places",
    r"\bany more\b": "no longer",
    r"(?:[.;] |^)Else\b|, else\b(?! if\b)": "otherwise",
    r"\b(?:hence|thereof|therein|whereupon|whilst|lest|likewise|henceforth|betimes)\b": "an everyday word",
    r"\bonce more\b": "again",
    r"\bwhat (?:becomes|became|has become|comes|came) of\b": "the result of",
    r"\bbe had\b": "is available",
    r"\ball else\b": "everything else",
    r"\bin the place of\b": "in place of, instead of",
}
"""What a newcomer reads twice, and what to write instead."""

AT_THE_BEGINNING = {
    r"Whether\b": "True if, as everywhere",
    r"(?:Of|Told|They|It|Who|Whoever|Also|And|But|Then)\b": "first what it is or does",
}
"""The same for the first word of a docstring."""


class Read(NamedTuple):
    """A text on one line, and the line on which it begins."""

    line: int
    is_docstring: bool
    text: str


def of_python(source: str) -> Iterator[Read]:
    """Docstrings, strings with more than one word, and comments, those on consecutive lines as one."""
    tree = ast.parse(source)
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
    }  # those of attributes included
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield Read(node.lineno, False, " ".join("".join(map(str, parts)).split()))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) > 1:
            yield Read(node.lineno, id(node) in docstrings, " ".join(node.value.split()))
    comments: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("#! ")
    yield from joined(comments)


def of_proto(source: str) -> Iterator[Read]:
    lines = enumerate(source.splitlines(), 1)
    yield from joined({number: line.split("//", 1)[1].strip() for number, line in lines if "//" in line})


def of_page(source: str) -> Iterator[Read]:
    """Paragraphs, items and rows of tables; code is left out."""
    prose = re.sub(
        r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE
    )
    lines = enumerate(prose.splitlines(), 1)
    yield from joined({number: line.strip() for number, line in lines if line.strip()})


def joined(lines: dict[int, str]) -> Iterator[Read]:
    start, words = 0, ""
    for number in sorted(lines):
        if words and number - 1 in lines:
            words = f"{words} {lines[number]}"
            continue
        if words:
            yield Read(start, False, words)
        start, words = number, lines[number]
    if words:
        yield Read(start, False, words)


def read(path: Path) -> Iterator[Read]:
    source = path.read_text()
    if path.suffix == ".py":
        return of_python(source)
    return of_proto(source) if path.suffix == ".proto" else of_page(source)


def faults(found: Read) -> Iterator[str]:
    """What to write instead, for each habit in a text."""
    for pattern, instead in HABITS.items():
        for match in re.finditer(pattern, found.text):
            yield f"line {found.line}: {match[0]!r} in {around(found.text, match)!r}: {instead}"
    for pattern, instead in AT_THE_BEGINNING.items() if found.is_docstring else ():
        if match := re.match(pattern, found.text):
            yield f"line {found.line}: {around(found.text, match)!r}: {instead}"


def around(text: str, match: re.Match[str]) -> str:
    return text[max(0, match.start() - 30) : match.end() + 30]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_texts_are_plain_english() -> None:
    wrong = [
        f"{name_of(path)}, {fault}"
        for path in (*SOURCES, *PAGES)
        if not name_of(path).endswith(("_pb2.py", "_pb2_grpc.py"))
        for found in read(path)
        for fault in faults(found)
    ]
    assert wrong == [], "\n".join(wrong)


def test_lines_of_pages_and_protos_keep_to_110_columns() -> None:
    """But for rows of tables. Python's are ruff's to watch (E501)."""
    long = [
        f"{name_of(path)}:{number}"
        for path in (*PAGES, *(ROOT / "proto").rglob("*.proto"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 110 and not line.lstrip().startswith("|")
    ]
    assert long == []


@pytest.mark.parametrize(
    "text",
    [
        "Start a node whose device manages so much memory.",
        "If nobody waits for it.",
        "The one asked for, or that of before.",
        "A name that is no address.",
        "It is kept, unless where it is refused.",
        "Copies are direct. Where the system refuses, they pass through buffers.",
        "Nothing is read any more.",
        "As asked, else as the config says.",
        "The device cannot be had.",
    ],
)
def test_habits_are_noticed(text: str) -> None:
    assert list(faults(Read(1, False, text))) != []


@pytest.mark.parametrize(
    "text",
    [
        "There is no address.",
        "It is no longer read, and no larger than before.",
        "So many that it does not fit; as long as it lasts, so far as is known.",
        "The place where it lies.",
        "Use it if you can, or else if it must be.",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert list(faults(Read(1, False, text))) == []


def test_texts_are_found_with_their_lines() -> None:
    source = '"""One,\ntwo."""\n# Two\n# and three.\nx = f"four {1} five"\n\ny = "seven"  # six\n'
    assert sorted(of_python(source)) == [
        (1, True, "One, two."),
        (3, False, "Two and three."),
        (5, False, "four {} five"),
        (7, False, "six"),
    ]
