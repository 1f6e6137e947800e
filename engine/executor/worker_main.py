"""The child's side of a worker process: `python -m tokenmux.executor.worker_main SOCKET PARENT`.

SOCKET is the inherited descriptor that frames pass over, PARENT the front's process id. The first frame is
the setup, every other one a command; reports go back.
"""

import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from threading import Thread

import msgspec

from tokenmux.executor.assemble import WorkerSetup, assemble
from tokenmux.executor.loop import EngineLoop
from tokenmux.messages.codec import ORDERS, REPORTS, Codec, MalformedMessage
from tokenmux.messages.frame_socket import FrameSocket
from tokenmux.messages.reports import Broken, Report, Reports
from tokenmux.processes import orphans

SETUP: Codec[WorkerSetup] = Codec(msgspec.msgpack.Decoder(WorkerSetup), "a worker's setup")


def enter() -> None:
    """Become a worker: this process lives for its parent alone."""
    descriptor, parent = (int(argument) for argument in sys.argv[1:3])
    orphans.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with socket.socket(fileno=descriptor) as end:
        serve_front(FrameSocket(end))
    # Everything of ours is closed. Skip what libraries do while Python exits: Triton's binding prints a
    # report of leaks, and a thread of a native library may abort.
    logging.shutdown()
    os._exit(0)


def serve_front(frames: FrameSocket) -> None:
    """Serve the front until it sends `Shutdown`, or is gone."""
    setup = SETUP.decode(frames.receive())
    loop = EngineLoop()

    def emit(reports: list[Report]) -> None:
        try:
            frames.send(REPORTS.encode(Reports(setup.instance, reports)))
        except OSError:
            loop.stop()

    def read() -> None:
        try:
            while True:
                loop.send(ORDERS.decode(frames.receive()))
        except (EOFError, OSError):
            loop.stop()
        except MalformedMessage as error:
            loop.fail(f"the front sent {error}")

    Thread(target=read, name="tokenmux-command-reader", daemon=True).start()
    with ExitStack() as stack:
        try:
            parts = stack.enter_context(assemble(setup, loop, emit))
        except Exception as error:
            emit([Broken(f"the device cannot be used: {error}")])
            raise
        loop.run(parts.engine, parts.clock)


if __name__ == "__main__":
    enter()
