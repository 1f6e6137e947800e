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
from tokenmux.core.facts import FIRST_NODE
from tokenmux.messages.codec import NODE_SETUP, REPORTS
from tokenmux.messages.frame_socket import FrameSocket, PatientSocket
from tokenmux.messages.reports import Alive, Broken, Reports
from tokenmux.node.executor_processes import ExecutorProcesses
from tokenmux.node.loop import NodeLoop
from tokenmux.node.node import Node
from tokenmux.processes import garbage_collection, orphans
from tokenmux.processes.allocation_time import allocation_s
from tokenmux.processes.monotonic_clock import MonotonicClock


def be_a_node() -> None:
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
    executors = ExecutorProcesses(setup.host_kv_bytes, clock, loop.watch)
    try:
        node = Node(setup, clock, executors, loop.emit)
    except TokenmuxError as error:
        loop.emit([Broken(f"the node cannot start: {error}")])
        return
    garbage_collection.settle()
    try:
        loop.run(node, clock, executors)
    finally:
        executors.close()
        node.close()


if __name__ == "__main__":
    be_a_node()
