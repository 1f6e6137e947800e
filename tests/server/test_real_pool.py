"""A whole server with two real devices: its streams go on while devices are killed, drained, added and
removed."""

import os
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.test_real_lives import stream
from tests.server.test_serve import executors_of, node_of, real_server
from tokenmux.client import CallFailed, Client, DeviceState, PoolStatus

TWO = """\
devices: [{arena: 8MiB, count: 2, slab: 1MiB, prefill_chunk_tokens: 32}]
host: {cache: 32MiB, kv: 16MiB}
"""

PATIENCE_S = 200.0
"""How long the start of several processes may take on a busy machine: only a failing test waits that long."""


def status_when(client: Client, holds: Callable[[PoolStatus], bool]) -> PoolStatus:
    """The first status of which this holds."""
    return next(status for status in client.pool.watch(timeout_s=PATIENCE_S) if holds(status))


def device_of(client: Client, model: str) -> int:
    """The device that runs a model."""
    status = status_when(client, lambda now: any(d.running_model == model for d in now.instances))
    return next(device.id for device in status.instances if device.running_model == model)


def beside(*calls: Callable[[], object]) -> Callable[[], None]:
    """Make these calls one after another, in a thread, without waiting for them."""

    def run() -> None:
        for call in calls:
            call()

    return lambda: threading.Thread(target=run).start()


@pytest.mark.timeout(600)
def test_streams_go_on_while_devices_come_and_go(tmp_path: Path) -> None:
    with real_server(tmp_path, TWO, device="") as (process, address), Client(address) as client:
        alone = stream(client, max_tokens=150)
        done = threading.Event()

        def drain_where_it_runs() -> None:
            instance = device_of(client, "llama")
            client.pool.drain_device(instance, timeout_s=PATIENCE_S)
            client.pool.drain_device(instance, undo=True)
            done.set()

        assert stream(client, beside(drain_where_it_runs), max_tokens=150) == alone
        assert done.wait(PATIENCE_S)

        def kill_all_executors() -> None:
            for executor in executors_of(process.pid):
                os.kill(executor, signal.SIGKILL)

        assert stream(client, kill_all_executors, max_tokens=150) == alone
        status = status_when(
            client, lambda now: all(d.n_deaths and d.state is DeviceState.SERVING for d in now.instances)
        )
        assert [(device.n_deaths, device.fault) for device in status.instances] == [(1, ""), (1, "")]
        assert status.n_restarts == 0

        assert client.pool.add_device(arena_bytes=4 << 20, timeout_s=PATIENCE_S) == 2
        client.pool.remove_device(1, timeout_s=PATIENCE_S)
        client.pool.drain_device(0, timeout_s=PATIENCE_S)
        with pytest.raises(CallFailed, match="device 2 is the last one that serves"):
            client.pool.remove_device(2)
        assert stream(client, max_tokens=150) == alone

        os.kill(node_of(process.pid), signal.SIGKILL)
        assert stream(client, max_tokens=150) == alone
        status = status_when(client, lambda now: len(now.instances) == 2)
        assert [(d.id, d.state, d.arena_bytes) for d in status.instances] == [
            (0, DeviceState.DRAINED, 8 << 20),
            (2, DeviceState.SERVING, 4 << 20),
        ]
        client.pool.remove_device(0, timeout_s=PATIENCE_S)

        ends = [os.pidfd_open(child) for child in (node_of(process.pid), *executors_of(process.pid))]
        process.terminate()
        assert process.wait(30) == 0
        for end in ends:
            ready, _, _ = select.select([end], [], [], 10.0)
            assert ready, "a process outlived its server"
            os.close(end)


def test_health_turns_when_a_stopped_device_leaves_requests_waiting(tmp_path: Path) -> None:
    """Before the node would have noticed by the device's silence."""
    more = "node: {silent_s: 300, still_s: 2}\n"
    with (
        real_server(tmp_path, more) as (process, address),
        Client(address) as client,
        grpc.insecure_channel(address) as channel,
    ):
        alone = stream(client, max_tokens=100)
        health = health_pb2_grpc.HealthStub(channel)
        told = health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(told).status == health_pb2.HealthCheckResponse.SERVING
        (executor, *_) = executors_of(process.pid)

        def stop_and_go_on() -> None:
            os.kill(executor, signal.SIGSTOP)
            assert next(told).status == health_pb2.HealthCheckResponse.NOT_SERVING
            os.kill(executor, signal.SIGCONT)
            assert next(told).status == health_pb2.HealthCheckResponse.SERVING

        assert stream(client, stop_and_go_on, max_tokens=100) == alone
