"""`tokenmux pool` against the real server over scripted workers."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.cli.runner import refused, run
from tests.server.harness import ServerThread
from tests.server.sample_reports import worker_status, worker_use
from tokenmux.cli.tables import ModelsView
from tokenmux.client import Client
from tokenmux.core.span import Span
from tokenmux.messages.commands import Resize


def test_models_and_status_are_shown(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert "no worker is running" in run(server, "pool", "status").stdout
    server.do(server.post(worker_status("letters")))
    table = run(server, "models", "list").stdout
    assert "letters" in table
    assert "resident" in table
    shown = run(server, "pool", "status").stdout
    for part in (
        "0 of 256 requests",
        "virtual GPU",
        "2.0 KiB weights",
        "running letters",
        "resident",
        "1500 ms",
    ):
        assert part in shown
    status = json.loads(run(server, "pool", "status", "--json").stdout)
    assert status["models"][0]["residency"] == "resident"


@pytest.mark.parametrize("width", [80, 100, 160])
def test_states_and_reasons_are_whole_in_lines_of_any_length(server: ServerThread, width: int) -> None:
    server.do(server.post(worker_status("letters")))
    with Client(server.served.target) as client:
        (letters,) = client.models.list()
    models = (
        replace(letters, pinned=True, n_tokens=123_456, n_tokens_on_time=123_000),
        replace(letters, name="a-rather-long-name", refusal="its weights are quantised (awq)"),
    )
    console = Console(width=width, file=io.StringIO())
    console.print(ModelsView(models, {"letters": 1234.5}))
    lines = console.file.getvalue().splitlines()
    assert any("resident (pinned)" in line and "123456" in line and "1234.5" in line for line in lines)
    assert " ".join(lines[3:]) == "a-rather-long-name is refused: its weights are quantised (awq)"
    assert ("context" in lines[0]) == (width >= 100)


def test_the_pool_is_resized(server: ServerThread) -> None:
    result = run(server, "pool", "resize", "512MiB")
    assert (result.exit_code, result.stdout) == (0, "the pool has 512.0 MiB of device memory\n")
    assert server.do(server.served.hub.next(Resize)) == Resize(512 << 20)
    server.served.hub.refuses["resize"] = "512 bytes is too little"
    assert "512 bytes is too little" in refused(run(server, "pool", "resize", "512"), 1)
    for nonsense, message in (
        ("lots", "is not a size"),
        ("0", "must be more than 0"),
        ("9999999TiB", "less than 8 EiB"),
    ):
        assert message in refused(run(server, "pool", "resize", nonsense), 2)


@pytest.mark.parametrize("size", ["9" * 400, "1e400", "9" * 30 + "TiB"])
def test_sizes_of_any_length(server: ServerThread, size: str) -> None:
    assert len(refused(run(server, "pool", "resize", size), 2)) < 300


def test_a_trace_of_what_runs(server: ServerThread, tmp_path: Path) -> None:
    server.served.hub.spans = [Span(0, "compute", "letters", 91.0, 91.5, {"requests": 1})]
    file = tmp_path / "trace.json"
    result = run(server, "pool", "trace", "--past", "--seconds", "20", "-o", str(file))
    assert result.stdout.startswith(f"{file}: 1 operations and requests, 0.5 s")
    assert [event["ph"] for event in json.loads(file.read_text())["traceEvents"]] == ["M", "M", "X"]
    watched = run(server, "pool", "trace", "--seconds", "0", "-o", str(file))
    assert watched.stdout.startswith(f"{file}: 0 operations")
    line = refused(run(server, "pool", "trace", "--past", "-o", "/none/t"), 2)
    assert line == "error: /none/t: cannot be written: No such file or directory"


def test_status_shows_tenants_and_what_is_saved(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for message in (worker_status("letters"), worker_use("letters", tenants=("bank", "shop"))):
        server.do(server.post(message))
    shown = run(server, "pool", "status").stdout
    for part in (
        "saved 2.5 devices on average",
        "4 against one per model used in the last hour",
        "51 first, 52 again, 53 operator, 54 ahead",
        "7.0 s of them with nothing else running",
        "goodput 10.5 tokens/s on time while there was work",
        "bank",
        "≤ 25 ms",
    ):
        assert part in shown
    assert shown.index("shop") < shown.index("bank"), "the greatest user first"
