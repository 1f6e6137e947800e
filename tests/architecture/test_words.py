"""Every word has one owner: no two public names of the engine, and no two of its files, are the same.

A reader who meets a name twice has to find out whether it is the same thing. So it may stand twice only where
it is the same thing and one place must not import the other; each case is listed below with its reason.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for top in ("engine", "kernels") for path in (ROOT / top).rglob("*.py"))

SHARED_WORDS: Mapping[str, str] = {
    "Architecture": "two meanings: kernels, models/catalogue/gguf, simulator",
    "DEFAULT_ADDRESS": "the client imports nothing of ours; tests/core/test_addresses.py holds them equal",
    "Durations": "the client imports nothing of ours: what it returns mirrors the API",
    "GREEDY_BELOW": "two meanings: core, kernels/sample",
    "Prompt": "two meanings: client, server",
    "PromptInfo": "the client imports nothing of ours: what it returns mirrors the API",
    "Residency": "the client imports nothing of ours: what it returns mirrors the API",
    "Service": "the client imports nothing of ours: what it returns mirrors the API",
    "Workspace": "two meanings: kernels/paged_decode, kernels/sample",
    "evict": "two meanings: scheduler/instance",
    "fetch": "two meanings: scheduler/instance, scheduler/policy, scheduler/policy/baselines",
    "finish": "two meanings: client, kernels/sample",
    "kv_append": "two meanings: kernels, kernels/kv_append",
    "kv_page": "two meanings: kernels/kv_page",
    "kv_page_in_int8": "two meanings: kernels/kv_page",
    "kv_page_out_int8": "two meanings: kernels/kv_page",
    "model": "two meanings: client, server",
    "paged_decode": "two meanings: kernels, kernels/paged_decode",
    "paged_prefill": "two meanings: kernels, kernels/paged_prefill",
    "plan": "two meanings: cli.py, models/catalogue/gguf, scheduler/policy",
    "prompt_info": "two meanings: client, server",
    "recorded": "two meanings: client, server",
    "sample": "two meanings: kernels, kernels/sample",
    "serve": "two meanings: cli.py, kernels, scheduler/policy/baselines, server",
    "service": "two meanings: client, server",
    "sizes": "two meanings: client, server",
    "step": "two meanings: scheduler/instance, scheduler/policy/baselines",
    "summarise": "two meanings: kernels/sample, scheduler/metrics",
    "variant": "two meanings: kernels/kv_append, kernels/paged_prefill",
}
"""Public names with more than one owner: why."""

SHARED_FILES: Mapping[str, str] = {
    "app.py": "where a room is put together: the command line, the server",
    "errors.py": "the client imports nothing of ours, and has errors of its own",
    "generate.py": "in cli/ a file has the name of its command",
    "kernel.py": "every kernel has the same three files",
    "launch.py": "every kernel has the same three files",
    "plan.py": "in cli/ a file has the name of its command",
    "reference.py": "every kernel has the same three files",
    "serve.py": "in cli/ a file has the name of its command",
}
"""File names that stand in more than one folder: why."""


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


def test_every_word_has_one_owner() -> None:
    shared = {name: places for name, places in owners().items() if len(places) > 1}
    assert {name: places for name, places in shared.items() if name not in SHARED_WORDS} == {}


def test_every_file_name_stands_once() -> None:
    shared = {name: places for name, places in folders().items() if len(places) > 1}
    assert {name: places for name, places in shared.items() if name not in SHARED_FILES} == {}


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
