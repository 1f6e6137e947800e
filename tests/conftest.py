"""Settings for all tests: properties are explored in the same order on every machine and in every run, and
what starts processes runs one after the other, whatever runs beside it."""

from pathlib import Path

import pytest
from hypothesis import settings

from tokenmux.core.compiled_form import is_compiled

settings.register_profile(
    "deterministic", derandomize=True, deadline=None, database=None, max_examples=50, stateful_step_count=40
)
settings.load_profile("deterministic")

PURE = {
    "architecture",
    "conformance",
    "core",
    "kernels",
    "messages",
    "models",
    "scheduler",
    "simulator",
    "workload",
}
"""Folders whose tests start no servers."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests `pytest -n 2` runs in one process: those of a file, and all that may start servers,
    each of which wants the machine's cores."""
    tests = Path(__file__).parent
    impossible = pytest.mark.skip(reason="impossible in the compiled form")
    for item in items:
        folder = item.path.relative_to(tests).parts[0]
        group = item.path.stem if folder in PURE else "servers"
        item.add_marker(pytest.mark.xdist_group(group))
        if is_compiled() and item.get_closest_marker("pure"):
            item.add_marker(impossible)
