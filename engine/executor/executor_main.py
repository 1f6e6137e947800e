"""The process of an executor: `python -m tokenmux.executor.executor_main SOCKET PARENT`.

SOCKET is the inherited descriptor that frames pass over, PARENT the node's process id. The first frame is the
setup, with the descriptor of the memory for paged-out KV; every other one holds instructions. Completions go
back from the threads in which they happen.

    import ──▶ setup ──▶ arena ──▶ instructions, a beat each second

The main thread beats once a second between two instructions. So a process that is stopped, or a main loop
that is stuck, shows by its silence; what a channel waits for does not.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tokenmux.core.errors import TokenmuxError
from tokenmux.messages.codec import COMPLETIONS, EXECUTOR_SETUP, INSTRUCTIONS, MalformedMessage
from tokenmux.messages.completions import Completions, ExecutorAlive, ExecutorBroken
from tokenmux.messages.frame_socket import FrameSocket
from tokenmux.processes import orphans
from tokenmux.processes.allocation_time import allocation_s

if TYPE_CHECKING:
    from tokenmux.executor.executor import Executor

ALIVE_EVERY_S = 1.0
"""Seconds between reports that the main loop is alive, busy or idle."""

IMPORTS_S = 120.0
"""At most this long does importing torch and transformers take on a busy machine."""

_log = logging.getLogger(__name__)


def be_an_executor() -> None:
    """Become an executor: this process lives for its parent alone."""
    descriptor, parent = (int(argument) for argument in sys.argv[1:3])
    orphans.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with socket.socket(fileno=descriptor) as end:
        status = serve_node(FrameSocket(end))
    # The system frees what this process has, faster than we can, and whatever is in flight. Libraries would
    # print reports of leaks while Python exits, and a thread of theirs may abort.
    logging.shutdown()
    os._exit(status)


def serve_node(frames: FrameSocket) -> int:
    """Serve the node until it asks for the end, or is gone, or the device breaks. Returns the exit
    status."""
    is_broken = False

    def send(completions: Completions) -> None:
        nonlocal is_broken
        with suppress(OSError):  # the main thread hears of it, too
            frames.send(COMPLETIONS.encode(completions))
        if any(isinstance(completion, ExecutorBroken) for completion in completions):
            is_broken = True
            with suppress(OSError):
                frames.stop_receiving()

    try:
        send((ExecutorAlive(silent_s=IMPORTS_S),))
        # Not before that was said: it imports torch and transformers, which takes seconds. And before there
        # is a setup: a process can be kept ready for a device that dies.
        from tokenmux.executor.executor import Executor

        setup = EXECUTOR_SETUP.decode(frames.receive())
        if not frames.descriptors:
            raise MalformedMessage("a setup without the memory for paged-out KV")
        if setup.device.gpu:  # before anything uses CUDA
            os.environ["CUDA_VISIBLE_DEVICES"] = setup.device.gpu
        n_bytes = setup.device.facts.arena_bytes + setup.host_kv_bytes
        send((ExecutorAlive(silent_s=allocation_s(n_bytes)),))
        _carry_out_frames(frames, Executor(setup, frames.descriptors.popleft(), send))
    except (EOFError, ConnectionError):
        pass  # the node is gone, or this device broke
    except MalformedMessage as error:
        send((ExecutorBroken(f"the node sent {error}"),))
    except TokenmuxError as error:
        send((ExecutorBroken(f"the device cannot be used: {error}"),))
    except Exception as error:  # noqa: BLE001 - whatever it is, the node must hear of it
        _log.exception("the executor failed")
        send((ExecutorBroken(f"the executor failed: {error!r}"),))
    return int(is_broken)


def _carry_out_frames(frames: FrameSocket, executor: "Executor") -> None:
    beat_s = time.monotonic() + ALIVE_EVERY_S
    while not executor.is_closed:
        readable, _, _ = select.select([frames], [], [], max(0.0, beat_s - time.monotonic()))
        if readable:
            executor.carry_out(INSTRUCTIONS.decode(frames.receive()), frames.descriptors)
        if time.monotonic() >= beat_s and not executor.is_closed:
            executor.beat()
            beat_s = time.monotonic() + ALIVE_EVERY_S


if __name__ == "__main__":
    be_an_executor()
