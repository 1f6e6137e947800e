"""The program of GPU day, run where there is no GPU: in the interpreter, without packages that such a
machine may lack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_place import Item

ROOT = Path(__file__).resolve().parents[2]
MAY_BE_ABSENT = ("pydantic", "gguf", "grpc_health", "grpc_reflection", "grpc", "pytest_asyncio", "matplotlib")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Every Python started with it finds none of those packages, no CUDA device, and ours only through
    `.typing`."""
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
    done = run(environment, "--interpret", "--out", str(out), "--seconds", "600", "--only", *sections)
    document = json.loads((out / "gpu.json").read_text())
    statuses = {
        f"{section}.{name}: {item.get('reason', '')}": item["status"]
        for section, items in document["sections"].items()
        for name, item in items.items()
    }
    assert {name for name, status in statuses.items() if status != "done"} == set()
    assert done.returncode == 0
    assert list(document["sections"]) == sections
    assert document["in_flight"] is None
    last = json.loads(done.stdout.splitlines()[-1])
    # No figure may be taken for a measurement.
    assert last["metrics"] == {"items_failed": 0, "items_crashed": 0, "items_skipped": 0}
    assert document["interpreted"] is last["machine"]["interpreted"] is True
    assert len((out / "table.txt").read_text().splitlines()) == len(statuses)


@pytest.mark.timeout(300)
def test_every_part_can_be_reached_without_what_may_be_absent(
    environment: dict[str, str], tmp_path: Path
) -> None:
    check(environment, tmp_path / "out", ["node", "swap", "tests"])


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_all_of_it_in_the_interpreter(environment: dict[str, str], tmp_path: Path) -> None:
    check(environment, tmp_path / "out", list(gpu.SECTIONS))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_kernels_are_compiled_into_a_folder_where_there_is_no_gpu(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(environment, "--prepare", "sm_90", "--cache", str(tmp_path / "cache"))
    assert done.returncode == 0
    assert "kernels for sm_90" in done.stdout
    assert len(list((tmp_path / "cache").rglob("*.cubin"))) > 50


def sections_of(run: gpu.Run) -> dict[str, gpu.Outcome]:
    return {outcome.item: outcome for outcome in run.outcomes}


@pytest.fixture
def bad_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section `bad`, of the items that `tests.benchmarks.gpu_items` names."""
    monkeypatch.setitem(gpu.SECTIONS, "bad", ("tests.benchmarks.gpu_items:items", 60))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("bad_section")
def test_what_fails_or_dies_costs_itself_only(tmp_path: Path) -> None:
    run = gpu.Run(tmp_path, interpreted=True)
    gpu.carry_out(run, "bad", 300)
    outcomes = sections_of(run)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "fine": "done",
        "wrong": "failed",
        "deadly": "crashed",
        "after": "done",
    }
    assert outcomes["fine"].values == {"value": 1.5}
    assert outcomes["wrong"].values["reason"] == "ZeroDivisionError: division by zero"
    assert "gpu_items.py" in outcomes["wrong"].values["trace"]
    assert "status 7" in outcomes["deadly"].values["reason"]
    assert "what it said" in (tmp_path / "bad.log").read_text()


@pytest.mark.timeout(300)
def test_a_device_that_an_item_broke_costs_that_item_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails leaves a process whose device takes no more work: the rest runs in another."""
    monkeypatch.setitem(gpu.SECTIONS, "breaking", ("tests.benchmarks.gpu_items:breaking", 60))
    run = gpu.Run(tmp_path, interpreted=True)
    gpu.carry_out(run, "breaking", 300)
    outcomes = sections_of(run)
    assert [(name, outcome.status) for name, outcome in outcomes.items()] == [
        ("breaks", "failed"),
        ("after", "done"),
    ]
    assert outcomes["after"].values["process"] != outcomes["breaks"].values["reason"]


@pytest.mark.timeout(300)
def test_an_item_that_hangs_is_ended_and_all_before_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is up as soon as the item is begun, however slow the machine."""
    monkeypatch.setitem(gpu.SECTIONS, "endless", ("tests.benchmarks.gpu_items:endless", 60))
    run = gpu.Run(tmp_path, interpreted=True)
    seen: list[dict[str, object]] = []

    def clock() -> float:
        if run.in_flight != "endless.hanging":
            return 0.0
        seen.append(json.loads((tmp_path / "gpu.json").read_text()))
        return 1e6

    run.clock = clock
    gpu.carry_out(run, "endless", 300)
    outcomes = {name: outcome.status for name, outcome in sections_of(run).items()}
    # The clock goes back when the item has ended, so that a second process carries out what is behind it.
    assert outcomes == {"quick": "done", "hanging": "crashed", "late": "done"}
    assert list(seen[-1]["sections"]["endless"]) == ["quick"]  # type: ignore[index,call-overload]
    assert seen[-1]["in_flight"] == "endless.hanging"


def test_no_item_is_begun_without_time_for_it() -> None:
    now = 0.0

    def taking(seconds: float) -> dict[str, float]:
        nonlocal now
        now += seconds
        return {}

    items = [
        Item("first", lambda: taking(4), 1.0),
        Item("long", lambda: taking(100), 7.0),
        Item("short", lambda: taking(6), 5.0),
        Item("late", lambda: taking(0)),
    ]
    reports = list(gpu.carried_out(items, {"seen"}, 10.0, lambda: now))
    assert [(r["item"], r.get("status", "begun")) for r in reports] == [
        ("first", "begun"),
        ("first", "done"),
        ("long", "skipped"),
        ("short", "begun"),
        ("short", "done"),
        ("late", "begun"),
        ("late", "done"),
    ]
    assert reports[1]["seconds"] == 4
    now = 11.0
    (skipped,) = gpu.carried_out(items[3:], set(), -1.0, lambda: now)
    assert skipped["status"] == "skipped"


def test_no_process_is_started_to_find_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "started", lambda *_: pytest.fail("started"))
    run = gpu.Run(tmp_path, interpreted=True, clock=lambda: 5.0)
    gpu.carry_out(run, "copies", gpu.LEAST_S - 1)
    assert [(o.item, o.status) for o in run.outcomes] == [("all", "skipped")]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["sections"]["copies"]["all"]["reason"] == "no time left"


@pytest.mark.timeout(300)
def test_a_section_that_cannot_begin_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.SECTIONS, "broken", ("tests.benchmarks.gpu_items:broken", 60))
    run = gpu.Run(tmp_path, interpreted=True)
    gpu.carry_out(run, "broken", 300)
    (outcome,) = run.outcomes
    assert (outcome.item, outcome.status) == ("all", "crashed")
    assert "no such part" in outcome.values["reason"]
