"""What a node remembers for operators, on virtual time."""

from dataclasses import fields
from itertools import pairwise

import pytest

from tests.node.scenes import A, B, node_with, request
from tokenmux.core.facts import DeviceFacts, InstanceId, KvShape
from tokenmux.core.request import RequestId
from tokenmux.core.started import SwapReason
from tokenmux.messages.commands import AskTrace, Register, RemoveDevice
from tokenmux.messages.reports import NodeStatus, NodeUse, Traced
from tokenmux.node.telemetry import USE_INTERVAL_S, Telemetry
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE, SERVICE_TABLE, ServiceCounters
from tokenmux.testing import make_device, make_model, make_request
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

GB = 10**9
SHAPE = KvShape(n_layers=16, n_kv_heads=8, head_dim=64, dtype_bytes=2, block_size=16)
N_OUTPUT = {f"r{i}": 40 + i for i in range(6)}


@pytest.fixture
def body() -> NodeOnVirtualTime:
    """Two models that share a device, six requests of two tenants, all served."""
    facts = DeviceFacts("imagined", 16 * GB, 8 * GB, 1e9, 1e9, 1e12, 1e14, slab_bytes=64 << 20)
    body = NodeOnVirtualTime(setup_of(facts), {RequestId(name): n for name, n in N_OUTPUT.items()})
    for name in "ab":
        model = make_model(name, 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB)
        body.send(Register(model, path=""))
    for i, name in enumerate(N_OUTPUT):
        body.submit_at(make_request(name, "ab"[i % 2], 50, 1000, 3.0 * i, tenant="xy"[i % 2]))
    body.clock.run()
    return body


def reports(body: NodeOnVirtualTime) -> list[NodeUse]:
    return [message for message in body.said if isinstance(message, NodeUse)]


def test_reports_come_once_a_second_at_most_and_add_up(body: NodeOnVirtualTime) -> None:
    said = reports(body)
    assert len(said) > 3
    assert all(b.at_s - a.at_s >= USE_INTERVAL_S for a, b in pairwise(said))
    body.clock.call_at(body.clock.now_s() + 5.0, body.node.pump)
    body.clock.run()
    last = {name: SERVICE_TABLE.named(row) for report in reports(body) for name, row in report.tenants}
    assert {name: service["n_tokens"] for name, service in last.items()} == {
        "x": sum(n for i, n in enumerate(N_OUTPUT.values()) if i % 2 == 0),
        "y": sum(n for i, n in enumerate(N_OUTPUT.values()) if i % 2 == 1),
    }
    for model, row in {model: row for report in reports(body) for model, row in report.models}.items():
        service, metrics = SERVICE_TABLE.named(row), body.instance.metrics.of(model)
        assert service["gpu_s"] == metrics.service.gpu_s
        assert sum(service["gaps"].counts) == metrics.service.gaps.n
    status = [message for message in body.said if isinstance(message, NodeStatus)][-1]
    n_again = 0
    for shown in status.models:
        counts, metrics = MODEL_TABLE.named(shown.counts), body.instance.metrics.of(shown.model)
        assert counts["n_swaps"] == sum(metrics.swaps.values())
        assert {reason: counts[f"n_swaps_{reason.value}"] for reason in SwapReason} == metrics.swaps
        n_again += counts["n_swaps_again"]
    assert n_again > 0
    assert (
        INSTANCE_TABLE.named(status.devices[0].counts)["model_work_s"] == body.instance.metrics.model_work_s
    )


def test_what_did_not_move_is_not_told_again(body: NodeOnVirtualTime) -> None:
    assert any(len(report.tenants) == 1 for report in reports(body))
    for _ in range(3):
        body.clock.call_at(body.clock.now_s() + 5.0, body.node.pump)
        body.clock.run()
    n_reports = len(reports(body))
    body.clock.call_at(body.clock.now_s() + 5.0, body.node.pump)
    body.clock.run()
    assert len(reports(body)) == n_reports
    assert body.node.next_due_s is None


def test_a_counter_that_moves_alone_is_told() -> None:
    body = NodeOnVirtualTime(setup_of(make_device()), {})
    body.clock.run()
    clock = body.clock
    telemetry = Telemetry(body.pool, clock)
    counters = body.instance.metrics.tenants.setdefault("x", ServiceCounters())
    names = [field.name for field in fields(counters) if field.name in SERVICE_TABLE.names]
    plain = [name for name in names if isinstance(getattr(counters, name), int | float)]
    assert len(plain) > 5
    telemetry.report()
    for name in plain:
        setattr(counters, name, getattr(counters, name) + 1)
        clock.pass_to(clock.now_s() + 2 * USE_INTERVAL_S)
        assert telemetry.report() is not None, name


def test_a_trace_has_what_ended_within_the_time_asked_for(body: NodeOnVirtualTime) -> None:
    tickets = (body.send(AskTrace(last_s=1e9)), body.send(AskTrace(last_s=2.0)))
    everything, newest = (message for message in body.said if isinstance(message, Traced))
    assert (everything.ticket, newest.ticket) == tickets
    tracks = {span.track for span in everything.spans}
    assert tracks == {"compute", "copy_in", "fetch", "request"} | ({"copy_out"} & tracks)
    ended = {span.details["request"] for span in everything.spans if span.track == "request"}
    assert ended == set(N_OUTPUT)
    from_s = body.clock.now_s() - 2.0
    assert newest.spans == tuple(span for span in everything.spans if span.end_s >= from_s)
    assert 0 < len(newest.spans) < len(everything.spans)


def test_what_several_devices_served_of_a_model_or_a_tenant_is_one_row() -> None:
    """Also what a device served that has been replaced or removed since."""
    outputs = {f"r{i}": 40 + i for i in range(8)}
    body = node_with(16, 16, n_output=outputs)
    start_s = body.clock.now_s()
    for i, name in enumerate(outputs):
        body.submit_at(request(name, (A, B)[i % 2], start_s + 2.0 * i, 1000))
    body.clock.run(until_s=start_s + 15.0)
    body.executor_of(0).kill()
    body.clock.run()
    assert all(instance.metrics.n_steps for instance in body.pool.instances)
    body.send(RemoveDevice(InstanceId(1)))
    body.submit_at(request("r0 again", A, body.clock.now_s() + 5.0, 10))
    body.n_output["r0 again"] = 10  # type: ignore[index]
    body.clock.run()
    last = {name: SERVICE_TABLE.named(row) for report in reports(body) for name, row in report.models}
    assert {name: row["n_tokens"] for name, row in last.items()} == {
        A: sum(n for i, n in enumerate(outputs.values()) if i % 2 == 0) + 10,
        B: sum(n for i, n in enumerate(outputs.values()) if i % 2),
    }
    (tenant,) = {name for report in reports(body) for name, _ in report.tenants}
    rows = [SERVICE_TABLE.named(row) for report in reports(body) for _, row in report.tenants]
    assert tenant == "default"
    assert rows[-1]["n_tokens"] == sum(outputs.values()) + 10
    assert rows[-1]["n_requests"] == len(outputs) + 1
