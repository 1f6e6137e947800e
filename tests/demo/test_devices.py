"""How many devices the demonstration has, and that its report and its picture count all of them."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.server.sample_reports import device_status, node_status
from tests.server.scripted_models import facts
from tokenmux.client import PoolStatus, pool_values
from tokenmux.core.facts import InstanceId
from tokenmux.demo.load import StreamProgress
from tokenmux.demo.prepared_models import DemoModels
from tokenmux.demo.report import make_report, print_report
from tokenmux.demo.run import default_devices
from tokenmux.demo.service_level import Calibration
from tokenmux.demo.view import View
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.usage import Usage
from tokenmux.server.grpc_api.status_deltas import StatusDeltas

MODELS = DemoModels(Path("kept"), (facts("a", 600), facts("b", 300)))


@pytest.mark.parametrize(
    ("n_cores", "free_bytes", "n_devices"),
    [(4, None, 2), (8, 10**9, 2), (3, None, 1), (1, 10**9, 1), (4, 2 * 2100, 2), (4, 2 * 2100 - 1, 1)],
)
def test_two_devices_where_the_machine_has_cores_and_memory(
    n_cores: int, free_bytes: int | None, n_devices: int
) -> None:
    assert default_devices(MODELS, n_cores, free_bytes) == n_devices


def test_all_devices_share_what_the_host_keeps() -> None:
    config = MODELS.pool_config(2)
    assert config["host"] == {"cache": 1800, "kv": 600}
    assert isinstance(config["device"], dict)
    assert (config["device"]["count"], config["device"]["arena"]) == (2, 300)


def status(at_s: float, busy_s: float) -> PoolStatus:
    """Two devices, each of which has computed for `busy_s` seconds."""
    devices = tuple(device_status("a", instance=InstanceId(n)) for n in (0, 1))
    snapshot = PoolSnapshot("1", 9.0, 0, 256, 0, node_status("a", devices=devices), Usage(), ())
    deltas = StatusDeltas()
    deltas.take(snapshot)
    shown = pool_values.pool_status(deltas.since(0, basic=False).status)
    instances = tuple(replace(device, compute_busy_s=busy_s) for device in shown.instances)
    return replace(shown, at_s=at_s, instances=instances)


def test_the_report_counts_them_all() -> None:
    calibration = Calibration({"a": 0.01})
    report = make_report([], status(10.0, 1.0), status(20.0, 6.0), calibration, 1e9, "?", "!")
    assert (report.pool.devices_used, report.pool.device_bytes) == (2, 20_000)
    assert report.pool.compute_busy_share == 0.5, "of the time of both"
    console = Console(width=120, file=io.StringIO())
    print_report(report, console)
    shown = console.file.getvalue()
    assert "19.5 KiB on 2 devices for" in shown
    assert "2 used; one model per device would need" in shown


def test_the_picture_shows_each() -> None:
    view = View(StreamProgress(n_planned=1), "demo")
    view.status = status(10.0, 1.0)
    console = Console(width=120, file=io.StringIO())
    console.print(view.render(0.0))
    for part in ("device 0", "device 1", "24 steps"):
        assert part in console.file.getvalue()
