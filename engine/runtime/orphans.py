"""Child processes die with their parent, even stopped, hung, or still importing: Linux kills them (`PR_SET_PDEATHSIG`).

The child calls `die_with_parent` before anything else. The parent starts it with `start`, because Linux sends the signal
when the *thread* that started the child ends, not the process: a child started from a pool's thread would die with the pool.
On other systems both do nothing special; a child then ends when its pipe closes.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import TypeVar

Started = TypeVar("Started")

_PR_SET_PDEATHSIG = 1

_starter = ThreadPoolExecutor(1, thread_name_prefix="tokenmux-starter")
"""One thread that lives as long as this process; every child is started by it."""


def start(process: BaseProcess) -> None:
    """Start a child that lives until it ends, is ended, or this process ends. Raises what `process.start` raises."""
    started(process.start).result()


def started(start_child: Callable[[], Started]) -> Future[Started]:
    """Run `start_child`, which starts a child process in whatever way, on the thread that lasts."""
    return _starter.submit(start_child)


def die_with_parent(parent: int) -> None:
    """Called in the child, with the parent's process id: SIGKILL this process when the parent ends, or if it has ended already."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
