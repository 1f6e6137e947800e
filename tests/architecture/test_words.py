"""Every word has one owner: no two public names of the engine, and no two of its files, are the same.

A reader who meets a name twice has to find out whether it is the same thing. So a name may stand twice only
where it is the same thing, or where it is always read with the module or folder in front of it; each case is
listed here with its reason. The lists hold what is shared and nothing else, so whoever separates two names
takes them out.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for top in ("engine", "kernels") for path in (ROOT / top).rglob("*.py"))

SHARED_WORDS: Mapping[str, frozenset[str]] = {
    "The client imports nothing of ours, and what it takes and returns mirrors the API.": frozenset(
        {
            "DEFAULT_ADDRESS",
            "DeviceState",
            "Durations",
            "Operation",
            "OperationState",
            "Pool",
            "Prompt",
            "PromptInfo",
            "Residency",
            "ToolCall",
        }
    ),
    "Kernels import nothing of ours; a test holds the two equal.": frozenset({"GREEDY_BELOW"}),
    "A kernel's launch, its reference and its floor are three forms of one operation.": frozenset(
        {
            "kv_append",
            "kv_page",
            "kv_page_in_int8",
            "kv_page_out_int8",
            "paged_decode",
            "paged_prefill",
            "sample",
        }
    ),
    "Every kernel has one; read with its folder.": frozenset({"variant"}),
    "A part of a Triton kernel, called by that kernel alone.": frozenset({"finish", "summarise"}),
    "Read with its module, which says of what: `validate.step`, `complete.step`, `rescue.plan`.": frozenset(
        {"evict", "fetch", "plan", "step"}
    ),
}
"""Public names with more than one owner, by the reason for it."""

SHARED_FILES: Mapping[str, frozenset[str]] = {
    "Every kernel has the same three files.": frozenset({"kernel.py", "launch.py", "reference.py"}),
    "In cli/ a file has the name of its command.": frozenset(
        {"generate.py", "plan.py", "pool.py", "serve.py"}
    ),
    "Where a program is put together: the command line, the server.": frozenset({"app.py"}),
    "The client imports nothing of ours, and has errors of its own.": frozenset({"errors.py"}),
}
"""File names that stand in more than one folder, by the reason for it."""


def words_of(tree: ast.Module) -> Iterator[str]:
    """The public names that a module defines at its top: classes, functions, constants and type aliases."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_") and name != "logger")


def owners() -> dict[str, list[str]]:
    """By public name: the files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for name in set(words_of(ast.parse(path.read_text()))):
            found[name].append(str(path.relative_to(ROOT)))
    return found


def folders() -> dict[str, list[str]]:
    """By file name: the folders that have such a file."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        if not path.name.startswith("__"):
            found[path.name].append(str(path.parent.relative_to(ROOT)))
    return found


@pytest.mark.parametrize(
    ("found", "allowed"), [(owners(), SHARED_WORDS), (folders(), SHARED_FILES)], ids=["names", "files"]
)
def test_every_name_has_one_owner(found: dict[str, list[str]], allowed: Mapping[str, frozenset[str]]) -> None:
    shared = {name: places for name, places in found.items() if len(places) > 1}
    listed = frozenset().union(*allowed.values())
    assert {name: places for name, places in shared.items() if name not in listed} == {}
    assert listed - shared.keys() == set(), "these have one owner now: take them out of the list"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("class A:\n    B = 1\n    def c(self): ...", ["A"]),
        ("async def f(): ...\ndef _g(): ...", ["f"]),
        ("A = B = 1\nC: int = 2\n_D = 3\nlogger = 4", ["A", "B", "C"]),
        ("from x import A\nimport b", []),
    ],
)
def test_what_counts_as_a_word(code: str, words: list[str]) -> None:
    assert list(words_of(ast.parse(code))) == words
