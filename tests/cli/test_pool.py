"""`tokenmux pool` against the real server over scripted nodes."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.cli.runner import refused, run
from tests.server.harness import ServerThread
from tests.server.sample_reports import device_status, node_status, node_use
from tokenmux.cli.tables import ModelsView, pool_view
from tokenmux.client import Client, PoolStatus
from tokenmux.client.sync import Pool
from tokenmux.core.facts import FIRST_INSTANCE, InstanceId, ModelId
from tokenmux.core.phases import DeviceState
from tokenmux.core.span import Span
from tokenmux.messages.commands import AddDevice, DrainDevice, RemoveDevice, Resize


def test_models_and_status_are_shown(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert "no node is running" in run(server, "pool", "status").stdout
    server.do(server.post(node_status("letters")))
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
    server.do(server.post(node_status("letters")))
    with Client(server.served.target) as client:
        (letters,) = client.models.list()
    models = (
        replace(letters, pinned=True, n_tokens=123_456, n_tokens_on_time=123_000, instances=(0, 1)),
        replace(letters, name="a-rather-long-name", refusal="its weights are quantised (awq)"),
    )
    console = Console(width=width, file=io.StringIO())
    console.print(ModelsView(models, {"letters": 1234.5}))
    lines = console.file.getvalue().splitlines()
    whole = ("resident (pinned)", "0,1", "3", "4", "100%", "1234.5")
    assert any(all(part in line for part in whole) for line in lines)
    said = [line for line in lines if "refused:" in line or "quantised" in line]
    assert " ".join(said) == "a-rather-long-name is refused: its weights are quantised (awq)"
    assert ("context" in lines[0]) == (width >= 120)
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [64, 80, 100])
def test_wide_numbers_cut_neither_a_name_nor_a_state(server: ServerThread, width: int) -> None:
    server.do(server.post(node_status("letters")))
    with Client(server.served.target) as client:
        (letters,) = client.models.list()
    service = replace(letters.service, n_prefix_hits=12_345, n_cached_prompt_tokens=1_234_567_890)
    wide = replace(
        letters, pinned=True, n_tokens=1_234_567_890, n_swaps=123_456, instances=(0, 1, 2), service=service
    )
    models = (wide, replace(wide, name="n" * 64))
    console = Console(width=width, file=io.StringIO())
    console.print(ModelsView(models))
    header, first, *rest = console.file.getvalue().splitlines()
    assert first.split()[:3] == ["letters", "resident", "(pinned)"]
    assert "".join(line.split()[0] for line in rest) == "n" * 64
    assert {"run", "queue", "on time"} <= {part.strip() for part in header.split("  ")}
    assert "…" not in console.file.getvalue()
    assert max(map(len, (header, first, *rest))) <= width


def test_what_is_overdue_counts_in_the_share_on_time(server: ServerThread) -> None:
    server.do(server.post(node_status("letters")))
    with Client(server.served.target) as client:
        (letters,) = client.models.list()
    console = Console(width=100, file=io.StringIO())
    console.print(ModelsView((replace(letters, n_tokens=90, n_tokens_on_time=90, n_tokens_overdue=30),)))
    assert "75%" in console.file.getvalue()


@pytest.mark.parametrize("width", range(60, 90))
def test_a_short_name_leaves_the_head_of_its_column_whole(server: ServerThread, width: int) -> None:
    server.do(server.post(node_status("letters")))
    with Client(server.served.target) as client:
        (letters,) = client.models.list()
    console = Console(width=width, file=io.StringIO())
    console.print(ModelsView((replace(letters, name="s"),)))
    header, row = console.file.getvalue().splitlines()
    assert (header.split()[0], row.split()[0]) == ("model", "s")


@pytest.mark.parametrize("width", [80, 160])
def test_several_devices_are_shown_whole_in_lines_of_any_length(server: ServerThread, width: int) -> None:
    gib = 1 << 30
    devices = (
        device_status("letters", arena_bytes=68 * gib, weight_bytes=33 * gib, pinned=(ModelId("letters"),)),
        device_status(instance=InstanceId(1), state=DeviceState.OUT, fault="out of memory", n_deaths=3),
        device_status(
            instance=InstanceId(12), state=DeviceState.DRAINING, loading_model=ModelId("wide"), n_requests=0
        ),
    )
    server.do(server.post(node_status("letters", devices=devices)))
    with Client(server.served.target) as client:
        before = client.pool.status()
    busier = replace(before.instances[0], compute_busy_s=9.5)
    now = replace(before, at_s=before.at_s + 2, instances=(busier, *before.instances[1:]))
    console = Console(width=width, file=io.StringIO())
    console.print(pool_view(now, before))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    for line in (
        "0 serving letters 33.0 GiB 68.0 GiB 14 75% 15",
        "1 out 2.2 KiB 9.8 KiB 14 0% 3",
        "12 draining 2.2 KiB 9.8 KiB 0% 15",
        "0 virtual GPU; holds letters (pinned)",
        "12 virtual GPU; loads wide",
        "host cache ━━━╸ 4.9 KiB of 39.1 KiB",
        "device 1 is out: out of memory",
    ):
        assert line in lines


def test_devices_are_added_drained_and_removed(server: ServerThread) -> None:
    hub = server.served.hub
    result = run(server, "pool", "add", "--arena", "4KiB")
    assert (result.exit_code, result.stdout) == (0, "device 1 serves\n")
    assert server.do(hub.next(AddDevice)).device.facts.arena_bytes == 4096
    assert run(server, "pool", "resize", "8KiB", "--device", "1").stdout == (
        "device 1 has 8.0 KiB of device memory\n"
    )
    assert server.do(hub.next(Resize)) == Resize(8192, InstanceId(1))
    assert run(server, "pool", "drain", "1").stdout == "device 1 is drained\n"
    assert run(server, "pool", "drain", "1", "--undo").stdout == "device 1 serves again\n"
    assert server.do(hub.next(DrainDevice)) == DrainDevice(InstanceId(1))
    assert server.do(hub.next(DrainDevice)) == DrainDevice(InstanceId(1), undo=True)
    assert run(server, "pool", "remove", "1").stdout == "device 1 is removed\n"
    assert server.do(hub.next(RemoveDevice)) == RemoveDevice(InstanceId(1))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("drain", "7"), 1, "there is no device 7: the pool has 0"),
        (("remove", "0"), 1, "device 0 is the last one that serves: add another one before removing it"),
        (("drain", "0", "--undo"), 1, "device 0 is not drained: there is nothing to undo"),
        (("resize", "900TiB", "--device", "0"), 1, "this machine has 1 GiB"),
        (("resize", "1KiB", "--device", "3"), 1, "there is no device 3"),
        (("resize", "500"), 1, "letters needs 1000 bytes, the device has 500"),
        (("add", "--kind", "tpu"), 2, "'tpu' is not a kind of device: write 'cpu' or 'cuda'"),
        (("add", "--paged-kv", "int4"), 2, "write 'exact' or 'int8'"),
        (("add", "--gpu", "none"), 1, "there is no GPU none"),
        (("add", "--arena", "0"), 2, "must be more than 0"),
    ],
)
def test_wrong_input_about_devices(
    server: ServerThread, arguments: tuple[str, ...], status: int, message: str
) -> None:
    assert message in refused(run(server, "pool", *arguments), status)
    assert not any(
        isinstance(command, AddDevice | DrainDevice | RemoveDevice | Resize)
        for command in server.served.hub.unread()
    )


def test_the_pool_is_resized(server: ServerThread) -> None:
    result = run(server, "pool", "resize", "512MiB")
    assert (result.exit_code, result.stdout) == (0, "the pool has 512.0 MiB of device memory\n")
    assert server.do(server.served.hub.next(Resize)) == Resize(512 << 20, FIRST_INSTANCE)
    server.served.hub.refuses["device"] = "1500 bytes is too little"
    assert "1500 bytes is too little" in refused(run(server, "pool", "resize", "1500"), 1)
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


def test_what_the_prefix_cache_saves_is_shown_once_it_saves_something(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    server.do(server.post(node_status("letters")))
    for command in (("pool", "status"), ("models", "list")):
        assert "cached" not in run(server, *command).stdout
    server.do(server.post(node_use("letters", tenants=("bank",))))
    shown = run(server, "pool", "status").stdout
    assert shown.count("hits  cached") == 2, "of models and of tenants"
    assert "hits  cached" in run(server, "models", "list").stdout
    monkeypatch.setenv("COLUMNS", "80")
    assert "hits" not in run(server, "models", "list").stdout


def test_status_shows_tenants_and_what_is_saved(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for message in (node_status("letters"), node_use("letters", tenants=("bank", "shop"))):
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


def test_what_is_watched_goes_through_a_pipe_as_it_comes(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `pool status --watch | head` reads it."""

    def changes(pool: Pool, *, min_interval_s: float) -> Iterator[PoolStatus]:
        with Client(server.served.target) as other:
            yield from (other.pool.status(), other.pool.status())

    monkeypatch.setattr(Pool, "watch", changes)
    shown = run(server, "pool", "status", "--watch").stdout
    assert shown.count("of 256 requests") == 2
