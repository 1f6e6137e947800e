"""Results are appended and compared: with runs of the same kind only, against all that was measured
before."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare, history, report
from benchmarks.history import Entry

MACHINE = {"system": "Linux", "cpu": "a", "cores": 2, "python": "3.11.7"}


def entry(value: float, *, met: bool | None = None, quick: bool = False, cpu: str = "a") -> Entry:
    targets = {} if met is None else {"ratio": {"at_most": 1.3, "source": "s", "met": met}}
    metrics = {"ratio": value, "ratio_p20": value - 0.1, "ratio_p80": value + 0.1}
    return Entry("swap", "c", "2026-11-26", quick, {**MACHINE, "cpu": cpu}, metrics, targets)


def changes(*entries: Entry, last: int = 5) -> list[compare.Change]:
    return compare.compare(entries, last)


def test_what_a_benchmark_prints_is_what_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "history.jsonl"
    target = report.Target("somebody", at_most=1.3)
    report.finish("swap", {"ratio": 1.0}, {"ratio": target})
    assert not file.exists(), "nothing is written unless a file is named"
    monkeypatch.setenv(history.VARIABLE, str(file))
    report.finish("swap", {"ratio": 1.5, "ratio_p80": 1.6}, {"ratio": target}, {"threads": 3})
    report.finish("decode", {"other": 2})
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first, second = history.read(file)
    assert [json.loads(line) for line in file.read_text().splitlines()] == printed[1:]
    assert (first.benchmark, first.metrics, first.names) == (
        "swap",
        {"ratio": 1.5, "ratio_p80": 1.6},
        ("ratio",),
    )
    assert (first.targets["ratio"]["met"], first.machine["threads"]) == (False, 3)
    assert (second.benchmark, second.targets) == ("decode", {})


def test_the_newest_run_is_held_against_earlier_ones_of_its_kind() -> None:
    earlier = [entry(1.0), entry(1.2), entry(9.0, quick=True), entry(9.0, cpu="b"), entry(1.1)]
    change = next(c for c in changes(*earlier, entry(1.65)) if c.new == 1.65)
    assert (change.before, change.n_before, change.ratio) == (1.1, 3, pytest.approx(1.5))
    assert (change.low, change.high) == (0.9, pytest.approx(1.3))
    assert change.outside


def test_within_all_that_was_measured_is_not_outside() -> None:
    (change,) = changes(entry(1.0), entry(1.2), entry(1.29))
    assert not change.outside


def test_only_the_last_runs_count() -> None:
    (change,) = changes(entry(5.0), entry(1.0), entry(1.0), entry(1.5), last=2)
    assert (change.n_before, change.before, change.outside) == (2, 1.0, True)


def test_a_first_run_and_a_new_metric_are_compared_with_nothing() -> None:
    assert changes(entry(1.0), entry(1.0, cpu="b")) == []
    new = replace(entry(1.0), metrics={"fresh": 1.0})
    assert changes(entry(1.0), new) == []


def test_a_target_is_lost_when_it_was_met_before() -> None:
    assert changes(entry(1.0, met=True), entry(1.5, met=False))[0].lost
    assert not changes(entry(1.5, met=False), entry(1.5, met=False))[0].lost
    assert not changes(entry(1.5), entry(1.5, met=False))[0].lost, "it is a new one"


def test_a_before_of_zero_has_no_ratio() -> None:
    lost, again = (replace(entry(1.0), metrics={"tokens_changed": n}) for n in (0, 3))
    (change,) = changes(lost, again)
    assert (change.ratio, change.outside) == (None, True)


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text('{"benchmark": "swap"}\n')
    with pytest.raises(ValueError, match=r"history\.jsonl:1 is not the result of a benchmark"):
        list(history.read(file))


def test_the_program_tells_people_and_scripts(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    for one in (entry(1.0, met=True), entry(1.5, met=False)):
        document = {
            "benchmark": one.benchmark,
            "commit": one.commit,
            "date": one.date,
            "machine": one.machine,
        }
        history.append({**document, "metrics": one.metrics, "targets": one.targets}, file)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare", "--history", str(file)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, "a target was lost"
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "compared": 1,
        "outside": {"swap ratio": 1.5},
        "targets_lost": ["swap ratio"],
    }


def test_the_projects_own_history_can_be_read() -> None:
    assert all(entry.commit != "unknown" for entry in history.read(history.FILE))
