"""The programs of examples/ do what they say: real servers on small models made here, and simulations."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.harness import ServerThread, serving
from tokenmux.models.catalogue import tiny

pytestmark = pytest.mark.timeout(300)

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: object) -> str:
    """What the example prints, run as its own docstring says."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_models_take_turns_on_a_device_that_holds_one(tmp_path: Path) -> None:
    models = [tmp_path / "one", tmp_path / "other"]
    for folder in models:
        tiny.create("gpt2", folder)
    told = run("serve_two_models.py", *models, "--arena", "1792KiB", "--catalogue", tmp_path / "kept")
    assert re.findall(r"^(\w+): '.*' after [\d.]+ s$", told, re.MULTILINE) == ["first", "second"] * 2
    assert [int(n) for n in re.findall(r"swapped in (\d+) times", told)] == [2, 2]


def test_an_answer_streams() -> None:
    with ServerThread(serving) as server:
        told = run("stream.py", server.served.target, "letters", "abc")
    assert re.fullmatch(r"defghijklmnopqrstuvwdefg\n24 tokens, the first after [\d.]+ s: length\n", told), (
        told
    )


def test_a_pool_is_planned() -> None:
    lines = run("plan_a_pool.py").splitlines()
    assert lines[0].startswith("1 GPUs: 0.7")
    assert lines[-1] == "14 models need 2 GPUs"


def test_a_policy_of_ones_own_serves_everybody() -> None:
    own, default = run("write_a_policy.py").splitlines()
    assert own.startswith("oldest-first: 0.8")
    assert default.startswith("slack: 1.000")


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in text] == []
