"""The process of a node: `python -m tokenmux.node.node_main SOCKET PARENT`.

SOCKET is the inherited descriptor that frames pass over, PARENT the front's process id. The first frame is
the setup, every other one a command; reports go back. Executors are children of this process, and die with
it.
"""

import logging
import os
import signal
import socket
import sys

from tokenmux.core.errors import TokenmuxError
from tokenmux.core.facts import FIRST_NODE, InstanceId
from tokenmux.messages.codec import NODE_SETUP, REPORTS
from tokenmux.messages.frame_socket import FrameSocket, PatientSocket
from tokenmux.messages.reports import Alive, Broken, Reports
from tokenmux.messages.setups import DeviceSetup
from tokenmux.node.executor_process import ExecutorProcess
from tokenmux.node.loop import NodeLoop
from tokenmux.node.node import Node
from tokenmux.processes import garbage_collection, orphans
from tokenmux.processes.allocation_time import allocation_s
from tokenmux.processes.monotonic_clock import MonotonicClock


def enter() -> None:
    """Become a node: this process lives for its parent alone."""
    descriptor, parent = (int(argument) for argument in sys.argv[1:3])
    orphans.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with socket.socket(fileno=descriptor) as end:
        serve_front(end)
    logging.shutdown()
    os._exit(0)


def serve_front(end: socket.socket) -> None:
    """Serve the front until it sends `Shutdown`, or is gone."""
    frames = FrameSocket(end)
    setup = NODE_SETUP.decode(frames.receive())
    silent_s = allocation_s(setup.host_kv_bytes)
    frames.send(REPORTS.encode(Reports(FIRST_NODE, [Alive(silent_s)])))
    loop, clock = NodeLoop(PatientSocket(end)), MonotonicClock()

    def start(index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int) -> ExecutorProcess:
        executor = ExecutorProcess(index, device, host_kv, setup.host_kv_bytes, n_devices=n_devices)
        loop.watch(executor)
        return executor

    try:
        node = Node(setup, clock, start, loop.emit)
    except TokenmuxError as error:
        loop.emit([Broken(f"the node cannot start: {error}")])
        return
    garbage_collection.settle()
    try:
        loop.run(node, clock)
    finally:
        node.close()


if __name__ == "__main__":
    enter()
