"""The inside of a child process of the front: sets limits, then does one piece of work after another, until
the front is gone.

    python -m tokenmux.server.children.encoder_child SOCKET PARENT MEMORY

SOCKET is the inherited descriptor over which frames (`frames.py`) pass, PARENT the front's process id, MEMORY
the number of bytes that the process may allocate (`RLIMIT_DATA`: private writable memory; mapped files that
are only read do not count).
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tokenmux.core.errors import ErrorCode, TokenmuxError
from tokenmux.processes.orphans import die_with_parent
from tokenmux.server.children.frames import pack, read

Reply = tuple[Mapping[str, object], bytes]
Tell = Callable[[Mapping[str, object]], None]
Handle = Callable[[dict[str, Any], bytes, Tell], Reply]
"""Does one piece of work. What it raises is the answer: an error of our tree as it is, any other as
BadCheckpoint."""


def run(handle: Handle) -> None:
    """Serve the front that started this process. Returns when the front closes its end."""
    descriptor, parent, memory_bytes = (int(argument) for argument in sys.argv[1:4])
    die_with_parent(parent)
    # The front ends its children; it alone handles signals to the group.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    limit_memory(memory_bytes)
    # Started successfully: from here on what a model's code prints is discarded.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with socket.socket(fileno=descriptor) as channel, channel.makefile("rb") as incoming:

        def report(header: Mapping[str, object]) -> None:
            channel.sendall(pack(header))

        while (message := read(incoming)) is not None:
            channel.sendall(pack(*_answer(handle, message, report)))


def limit_memory(n_bytes: int) -> None:
    """Let this process allocate at most `n_bytes` from now on. Never raises its present limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _answer(handle: Handle, message: tuple[dict[str, Any], bytes], report: Tell) -> Reply:
    try:
        return handle(*message, report)
    except TokenmuxError as error:
        return {"error": error.code, "message": str(error)}, b""
    except MemoryError:
        return {
            "error": ErrorCode.NOT_SERVABLE,
            "message": "it takes more memory than its process may use",
        }, b""
    except BaseException as error:  # noqa: BLE001 - a panic of a native library is not an Exception
        return {"error": ErrorCode.BAD_CHECKPOINT, "message": reason_of(error)}, b""


def reason_of(error: BaseException) -> str:
    """The first line of a foreign exception, with its type."""
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}"[:500]
