"""Whatever is killed: within seconds none of its processes is left, and so none of the memory that they
shared, and the port is free."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.chaos.real_pool import Processes
from tests.chaos.test_real_pool import server, until_gone
from tokenmux.client import Client
from tokenmux.models.catalogue import tiny


@pytest.mark.parametrize("is_stopped", [False, True])
def test_nothing_outlives_a_front_that_was_killed(tmp_path: Path, is_stopped: bool) -> None:
    """Also if its node is stopped at that moment."""
    tiny.create("llama", tmp_path / "llama")
    (tmp_path / "pool.yaml").write_text(
        "listen: 127.0.0.1:0\ncatalogue: kept\nmodels: {llama: llama}\n"
        "devices: [{kind: cpu, count: 2, arena: 8MiB}]\nhost: {cache: 8MiB, kv: 8MiB}\n"
    )
    with server(tmp_path) as (process, address):
        with Client(address) as client:
            assert client.generate("llama", "Once", max_tokens=4).token_ids
        processes = Processes(process.pid)
        node = processes.node()
        everything = processes.all()
        assert node is not None
        assert len(everything) >= 4, "front, node, and an executor for each device"
        if is_stopped:
            os.kill(node, signal.SIGSTOP)
        process.kill()
        process.wait()
        asyncio.run(until_gone(everything))
        with socket.create_server(("127.0.0.1", int(address.rsplit(":", 1)[1]))):
            pass


def test_nothing_outlives_a_node_that_was_killed(tmp_path: Path) -> None:
    tiny.create("llama", tmp_path / "llama")
    (tmp_path / "pool.yaml").write_text(
        "listen: 127.0.0.1:0\ncatalogue: kept\nmodels: {llama: llama}\n"
        "devices: [{kind: cpu, count: 2, arena: 8MiB}]\nhost: {cache: 8MiB, kv: 8MiB}\n"
    )
    with server(tmp_path) as (process, address), Client(address) as client:
        alone = client.generate("llama", "Once", max_tokens=4).token_ids
        processes = Processes(process.pid)
        node = processes.node()
        assert node is not None
        below = [node, *processes.executors()]
        os.kill(node, signal.SIGKILL)
        asyncio.run(until_gone(below))
        assert client.generate("llama", "Once", max_tokens=4).token_ids == alone
