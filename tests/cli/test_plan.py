"""`tokenmux plan`: the plan itself, from names and from a running server, and the processes that simulate
it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.cli.runner import refused
from tests.server.harness import ServerThread, serving
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.cli.app import app
from tokenmux.cli.plan_processes import n_processes, plan_in_processes, progress_line
from tokenmux.client import Client
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.simulator.planner.plan_search import PlanSearch, plan_here
from tokenmux.simulator.planner.question import Question, world_of
from tokenmux.simulator.planner.simulated_job import Job
from tokenmux.workload.trace import read_trace


@pytest.fixture
def server() -> Iterator[ServerThread]:
    recorder = TrafficRecorder(100, start_s=0.0)
    with ServerThread(
        lambda: serving(FakeEntry(facts("letters")), FakeEntry(facts("more")), recorder=recorder)
    ) as running:
        yield running


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_several_processes_make_the_same_plan() -> None:
    question = Question(["6*qwen2.5-7b", "big=llama2-13b"], rate_rps=0.2, duration_s=20.0, compare=True)
    alone, apart = (PlanSearch(world_of(question), 0.99, ("slack", "request-level")) for _ in range(2))
    plan_here(alone)
    plan_in_processes(apart, 2, Console(file=sys.stderr))
    assert apart.plan() == alone.plan()


def test_processes_are_only_started_where_there_is_something_to_do() -> None:
    assert n_processes(3, 1) == 3
    assert n_processes(None, 1) == 1
    assert n_processes(None, 100_000) >= 1


def test_progress_says_what_is_done_and_what_is_under_way() -> None:
    planning = PlanSearch(world_of(Question(["qwen2.5-7b"], rate_rps=0.5)), 0.99, ("slack",))
    jobs = [Job("slack", 3), Job("dedicated", 9, "copies"), Job("slack", 4)]
    line = progress_line(planning, jobs)
    assert line == "0 pools simulated; now slack on 3, dedicated on 9 with twice the copies and 1 more"


def test_a_plan_of_names_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page, trace = tmp_path / "plan.html", tmp_path / "plan.trace"
    files = ["--html", str(page), "--chrome", str(trace)]
    result = run("plan", "2*qwen2.5-7b", "--duration", "20", "--rate", "0.3", *files, "--price", "3")
    assert result.exit_code == 0, result.output
    assert "$/M tokens" in result.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert "X" in {event["ph"] for event in json.loads(trace.read_text())["traceEvents"]}
    without = run("plan", "2*qwen2.5-7b", "--duration", "20", "--no-compare")
    assert "$" not in without.stdout
    assert "dedicated" not in without.stdout


def test_a_plan_from_a_server(server: ServerThread, tmp_path: Path) -> None:
    """What a server records is what its plan is made of, and what its traffic saved as a file gives again."""
    target = server.served.target
    with Client(target) as client:
        for number in range(5):
            client.generate("letters" if number % 2 else "more", "abc", max_tokens=3 + number)
    result = run("plan", "--from-server", target, "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["models"], plan["requests"]) == (2, 5)
    assert plan["points"][0]["summary"]["n_tokens"] == 3 + 4 + 5 + 6 + 7
    assert plan["devices"]["slack"] == 1

    file = tmp_path / "t.csv.gz"
    assert run("--server", target, "pool", "traffic", "-o", str(file)).stdout == f"{file}: 5 requests\n"
    assert sorted(line.output_tokens for line in read_trace(file)) == [3, 4, 5, 6, 7]
    again = run("plan", "letters=qwen2.5-7b", "more=qwen2.5-7b", "--trace", str(file), "--json")
    assert json.loads(again.stdout)["points"][0]["summary"]["n_tokens"] == 25


def test_a_server_without_traffic_and_one_that_is_not_there(server: ServerThread) -> None:
    line = refused(run("plan", "--from-server", server.served.target), 1)
    assert line.startswith("error: this server has recorded no request yet: send it some")
    assert "127.0.0.1:1" in refused(run("plan", "--from-server", "127.0.0.1:1"), 1)
    with ServerThread(lambda: serving(FakeEntry(facts("letters")))) as silent:
        line = refused(run("plan", "--from-server", silent.served.target), 1)
        assert "set `record_traffic.window` above 0" in line


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["qwen99"], 1, "no architecture qwen99; there are"),
        (["qwen2.5-7b", "--gpu", "H9"], 1, "no hardware profile H9; there are A10"),
        (["qwen2.5-7b", "--rate", "0"], 2, "raise --rate or --duration"),
        (["qwen2.5-7b", "--trace", "none.jsonl"], 2, "none.jsonl cannot be read: No such file"),
        (["qwen2.5-7b", "--steps", "none.csv"], 2, "none.csv: cannot be read: No such file"),
        (["qwen2.5-7b", "--steps", "."], 2, ".: cannot be read: Is a directory"),
        (["qwen2.5-7b", "--steps", "pyproject.toml"], 2, "step times pyproject.toml"),
        (["./none"], 2, "give the config.json of a model"),
        (["llama2-70b"], 1, "it needs a larger device budget or a smaller model"),
        ([], 2, "name at least one model to plan for"),
        (
            ["qwen2.5-7b", "--duration", "20", "--html", "/none/plan.html"],
            2,
            "/none/plan.html: cannot be written",
        ),
    ],
)
def test_what_cannot_be_planned_is_a_line(arguments: list[str], status: int, message: str) -> None:
    assert message in refused(run("plan", *arguments), status)


def test_negative_rates_are_wrong_usage() -> None:
    result = run("plan", "qwen2.5-7b", "--rate", "-1")
    assert result.exit_code == 2
    assert "--rate" in result.stderr


ORPHAN_MAKER = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from tokenmux.cli.plan_processes import _enter
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_enter, initargs=(None,))
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_simulating_process_does_not_outlive_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHAN_MAKER)
    child = int(subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, check=False).stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(timeout=30)


def test_a_plan_says_and_is_told_what_its_hosts_are_like() -> None:
    asked = ("plan", "qwen2.5-7b", "--no-compare", "--duration", "20")
    assert "Hosts: 2000 GB for 8 GPUs; 16 GB/s to each, 5 GB/s from disk." in run(*asked).stdout
    told = run(*asked, "--host-memory", "512GB", "--copy-speed", "50GB", "--disk-speed", "7GB", "--json")
    hardware = json.loads(told.stdout)["hardware"]
    assert hardware["host_cache_bytes"] + 8 * hardware["host_kv_bytes"] == 512 * 10**9
    assert hardware["host_kv_bytes"] == pytest.approx(512e9 * 0.256 / 8)
    assert (hardware["copy_bytes_per_s"], hardware["disk_bytes_per_s"]) == (50e9, 7e9)


@pytest.mark.parametrize(
    ("option", "value", "status", "reason"),
    [
        ("--host-memory", "10GB", 1, "raise host.cache (of a plan: --host-memory)"),
        ("--host-memory", "much", 2, "'much' is not a size"),
        ("--copy-speed", "3", 2, "3 per second is not a valid speed: it must be 1MB to 100TB"),
        ("--disk-speed", "101TB", 2, "101TB per second is not a valid speed"),
    ],
)
def test_hosts_that_cannot_be_are_refused(option: str, value: str, status: int, reason: str) -> None:
    assert reason in refused(run("plan", "qwen2.5-7b", option, value), status)
