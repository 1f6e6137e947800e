"""One list of checks: CI, the Makefile and pre-commit run the same commands, so that nobody hears of a
failure from CI first."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

PACKAGES = {"codespell": "codespell", "lint-imports": "import-linter", "mypy": "mypy", "ruff": "ruff"}
"""What checks without running the code, each with the package that it comes in."""

COMMAND = re.compile(
    r"(?:env )?(?P<variables>(?:\w+=\S+ )*)(?:\$\(BIN\)/)?"
    rf"(?P<tool>{'|'.join(PACKAGES)})(?P<arguments> .*)?"
)


def checks(lines: Iterable[str]) -> set[str]:
    """The lines that run one of the tools, written alike: variables first, no folder of an environment."""
    found = [COMMAND.fullmatch(line.strip()) for line in lines]
    return {f"{m['variables']}{m['tool']}{m['arguments'] or ''}" for m in found if m}


def in_ci() -> set[str]:
    return checks((ROOT / ".ci/run").read_text().splitlines())


def in_makefile() -> set[str]:
    """The recipes of all targets that `make check` needs."""
    text = (ROOT / "Makefile").read_text()
    recipes = dict(re.findall(r"^(\w+):[^\n]*\n((?:\t[^\n]*\n)+)", text, re.MULTILINE))
    (needed,) = re.findall(r"^check: ([^#\n]*)", text, re.MULTILINE)
    return checks(line for name in needed.split() for line in recipes[name].splitlines())


def hooks() -> list[dict[str, Any]]:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repository["repo"] for repository in repositories} == {"local"}, "others would be fetched"
    return [hook for repository in repositories for hook in repository["hooks"]]


def test_ci_the_makefile_and_pre_commit_run_the_same_checks() -> None:
    assert in_ci() == in_makefile() == checks(hook["entry"] for hook in hooks())


def test_every_tool_is_among_them() -> None:
    """Else a check that is dropped everywhere would pass the test above."""
    assert {tool for tool in PACKAGES for command in in_ci() if tool in command} == set(PACKAGES)


def test_hooks_need_nothing_that_ci_does_not_install() -> None:
    assert {hook["language"] for hook in hooks()} == {"system"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    missing = [p for p in PACKAGES.values() if not any(line.startswith(p) for line in extras["test"])]
    assert missing == []


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("\t$(BIN)/ruff check .", {"ruff check ."}),
        ("env A=b lint-imports --no-logo", {"A=b lint-imports --no-logo"}),
        ("\tA=b $(BIN)/lint-imports --no-logo", {"A=b lint-imports --no-logo"}),
        ("codespell", {"codespell"}),
        ('step "mypy"', set()),
    ],
)
def test_what_counts_as_a_check(line: str, command: set[str]) -> None:
    assert checks([line]) == command
