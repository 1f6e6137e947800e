"""The program of GPU day, run where there is no GPU: in the interpreter, without packages that such a machine may lack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]
MAY_BE_ABSENT = ("pydantic", "gguf", "grpc_health", "grpc_reflection", "grpc", "pytest_asyncio", "matplotlib")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Every Python started with it finds none of those packages, no CUDA device, and ours only through `.typing`."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in MAY_BE_ABSENT)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{blocked}")
    path = os.pathsep.join([str(tmp_path), str(ROOT / ".typing")])
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_without_a_gpu_it_says_so(environment: dict[str, str]) -> None:
    done = run(environment)
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first.startswith("no CUDA device")
    assert "--interpret" in second


def check(environment: dict[str, str], out: Path, sections: list[str]) -> None:
    done = run(environment, "--interpret", "--out", str(out), "--only", *sections)
    document = json.loads(out.read_text())
    statuses = {
        f"{section}.{name}: {item.get('reason', '')}": item["status"]
        for section, items in document["sections"].items()
        for name, item in items.items()
    }
    assert {name for name, status in statuses.items() if status != "done"} == set()
    assert done.returncode == 0
    assert list(document["sections"]) == sections
    last = json.loads(done.stdout.splitlines()[-1])
    # No figure may be taken for a measurement.
    assert last["metrics"] == {"items_failed": 0, "items_crashed": 0, "items_skipped": 0}
    assert document["interpreted"] is last["machine"]["interpreted"] is True


@pytest.mark.timeout(300)
def test_every_part_can_be_reached_without_what_may_be_absent(
    environment: dict[str, str], tmp_path: Path
) -> None:
    check(environment, tmp_path / "gpu.json", ["tests", "swap"])


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_all_of_it_in_the_interpreter(environment: dict[str, str], tmp_path: Path) -> None:
    check(environment, tmp_path / "gpu.json", list(gpu.SECTIONS))


def test_what_fails_or_dies_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SECTIONS, "bad", ("tests.benchmarks.gpu_items:items", 60))
    outcomes = {outcome.item: outcome for outcome in gpu.carry_out("bad", 60, interpreted=True)}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "fine": "done",
        "wrong": "failed",
        "deadly": "crashed",
        "after": "done",
    }
    assert outcomes["fine"].values == {"value": 1.5}
    assert outcomes["wrong"].values["reason"] == "ZeroDivisionError: division by zero"
    assert "status 7" in outcomes["deadly"].values["reason"]


def test_time_that_is_up_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SECTIONS, "endless", ("tests.benchmarks.gpu_items:endless", 60))
    monkeypatch.setattr(gpu, "GRACE_S", 4.0)
    outcomes = {outcome.item: outcome.status for outcome in gpu.carry_out("endless", 2.0, interpreted=True)}
    assert outcomes == {"quick": "done", "hanging": "crashed", "late": "skipped"}
    (skipped,) = gpu.carry_out("endless", -1.0, interpreted=True)
    assert (skipped.item, skipped.status) == ("all", "skipped")


def test_a_section_that_cannot_begin_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SECTIONS, "broken", ("tests.benchmarks.gpu_items:broken", 60))
    (outcome,) = gpu.carry_out("broken", 60, interpreted=True)
    assert (outcome.item, outcome.status) == ("all", "crashed")
    assert "no such part" in outcome.values["reason"]
