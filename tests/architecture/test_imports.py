"""The direction of imports (docs/architecture.md): the contracts stand in pyproject.toml, and these tests
hold them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for top in ("engine", "kernels") for path in (ROOT / top).rglob("*.py"))


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own, away from the checkout, so that nothing is imported by accident."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=os.sep,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_contracts_are_kept() -> None:
    """In a process of its own: import-linter sets up logging anew, which silences loggers that other tests
    listen to."""
    code = (
        f"import os, sys; os.chdir({str(ROOT)!r}); sys.path.insert(0, '.typing'); from "
        "importlinter.cli import lint_imports; "
        "raise SystemExit(lint_imports(config_filename='pyproject.toml', no_cache=True, no_logo=True))"
    )
    done = run(code)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "tokenmux.simulator.simulator",
        "tokenmux.scheduler.instance.instance",
        "tokenmux.scheduler.policy.slack",
        "tokenmux.client",
        "tokenmux.node.node_main",
        "tokenmux.server.serve",
    ],
)
def test_importing_it_leaves_torch_out(module: str) -> None:
    """Contracts see import statements; this sees what Python really loads."""
    heavy = "{'torch', 'transformers', 'triton'}"
    done = run(f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_the_scheduler_needs_no_third_party_package_at_all() -> None:
    """With site-packages switched off, so that a plan can be made, simulated and tested anywhere."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / '.typing')!r}); "
        "import tokenmux.simulator.simulator, tokenmux.scheduler.instance.instance, "
        "tokenmux.scheduler.policy.slack"
    )
    done = run(code, "-I", "-S")
    assert done.returncode == 0, done.stderr


AMBIENT = {("os", "environ"), ("os", "environb"), ("os", "getenv"), ("sys", "argv")}


def ambient_reads(tree: ast.AST) -> list[int]:
    """Lines that read arguments or the environment; handing the latter on to a child (`{**os.environ}`) is
    none."""
    handed_on = {id(value) for node in ast.walk(tree) if isinstance(node, ast.Dict) for value in node.values}
    return [
        node.lineno
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in AMBIENT
            and id(node) not in handed_on
        )
        or (
            isinstance(node, ast.ImportFrom)
            and any((node.module, alias.name) in AMBIENT for alias in node.names)
        )
    ]


def test_only_the_command_line_reads_the_environment() -> None:
    """Everything else is handed its settings."""
    exempt = {
        "engine/executor/calibrate.py",  # the argument of the child that it is
        "engine/executor/warming.py",  # the arguments of its child
        "engine/server/children/child.py",  # what it keeps from its children
        "engine/server/children/child_main.py",  # the arguments of such a child
        "engine/executor/executor_main.py",  # the arguments of that child
        "engine/executor/mask_child.py",  # the arguments of that child
        "engine/node/node_main.py",  # the arguments of that child
        "engine/node/executor_process.py",  # how OpenMP's threads wait in its child, unless the operator says
        "engine/models/network/rule_notes.py",  # what libraries read there: a note holds for the same only
        "engine/server/machine.py",  # CUDA's own variable: the names of the GPUs that it shows
    }
    found = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if "cli" not in path.relative_to(ROOT).parts and (lines := ambient_reads(ast.parse(path.read_text())))
    }
    assert found.keys() <= exempt, found


@pytest.mark.parametrize(
    ("code", "n_reads"),
    [
        ("import os; home = os.environ['HOME']", 1),
        ("from os import getenv", 1),
        ("import sys; print(sys.argv)", 1),
        ("import os; child = {**os.environ, 'A': '1'}", 0),
    ],
)
def test_what_counts_as_reading_it(code: str, n_reads: int) -> None:
    assert len(ambient_reads(ast.parse(code))) == n_reads
