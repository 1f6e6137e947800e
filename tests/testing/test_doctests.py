"""The examples in docstrings give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[2] / "engine"
NEED_A_SERVER = "engine/client/"
"""Examples of the client are calls; tests/client and tests/examples make such calls."""


def modules() -> list[str]:
    """Every module of the engine with an example."""
    files = [path.relative_to(ENGINE.parent) for path in ENGINE.rglob("*.py") if ">>> " in path.read_text()]
    parts = [
        path.with_suffix("").parts[1:] for path in files if not path.as_posix().startswith(NEED_A_SERVER)
    ]
    return sorted(".".join(("tokenmux", *part)).removesuffix(".__init__") for part in parts)


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_hold(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed


def test_there_are_some() -> None:
    assert len(modules()) >= 5
