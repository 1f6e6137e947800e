"""What the compiled form compiles is listed once, and the reasons to leave modules out still hold. Nothing is
compiled here."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tokenmux.core import plan
from tokenmux.core.compiled_form import is_compiled

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "engine"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPILED: dict[str, Any] = SETTINGS["tool"]["tokenmux"]["compiled"]
LEFT_OUT: list[dict[str, Any]] = COMPILED["left-out"]


def sources(name: str) -> list[Path]:
    """The modules that an entry of the list stands for: a folder ends with a slash."""
    path = ENGINE / name
    return sorted(path.rglob("*.py")) if name.endswith("/") else [path]


def test_the_list_names_what_there_is() -> None:
    assert [name for name in COMPILED["packages"] if not (ENGINE / name / "__init__.py").is_file()] == []
    named = [name for group in LEFT_OUT for name in group["modules"]]
    assert len(named) == len(set(named)), "each module is left out for one reason"
    assert [name for name in named if name.split("/")[0] not in COMPILED["packages"]] == []
    assert [name for name in named if not all(path.is_file() for path in sources(name))] == []


@pytest.mark.parametrize(
    ("name", "sign"),
    [(name, group["sign"]) for group in LEFT_OUT if "sign" in group for name in group["modules"]],
)
def test_the_reason_to_leave_it_out_is_still_there(name: str, sign: str) -> None:
    assert any(re.search(sign, path.read_text()) for path in sources(name)), (
        f"{name} has no {sign!r} any more: try to compile it"
    )


def test_every_module_of_these_packages_is_compiled_or_left_out() -> None:
    found = runpy.run_path(str(ROOT / "setup.py"))["compiled_modules"]()
    compiled = {path.as_posix() for path in found}
    assert {"core/plan.py", "scheduler/policy/slack.py", "simulator/simulator.py"} <= compiled
    left_out = {
        path.relative_to(ENGINE).as_posix()
        for group in LEFT_OUT
        for name in group["modules"]
        for path in sources(name)
    }
    every = {
        path.relative_to(ENGINE).as_posix()
        for package in COMPILED["packages"]
        for path in (ENGINE / package).rglob("*.py")
    }
    assert compiled & left_out == set()
    assert {name for name in every - compiled - left_out if not name.endswith("/__init__.py")} == set()


def test_which_form_runs_is_known() -> None:
    assert is_compiled() == (not (plan.__file__ or "").endswith(".py"))


def test_git_ignores_the_compiled_form() -> None:
    """It lies beside the sources after an editable install."""
    assert "*.so" in (ROOT / ".gitignore").read_text().splitlines()
