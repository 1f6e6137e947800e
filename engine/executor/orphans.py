"""Child processes die with their parent, even stopped, hung, or still importing: Linux kills them
(`PR_SET_PDEATHSIG`).

The child calls `die_with_parent` before anything else. The parent starts it with `start`, because Linux sends
the signal when the *thread* that started the child ends, not the process: a child started from a pool's
thread would die with the pool. On other systems `die_with_parent` does nothing; a child then ends when its
pipe closes.

A signal to the whole process group (Ctrl-C, systemd's SIGTERM) is for the parent to answer: children are born
with SIGINT and SIGTERM blocked, and are ended by `kill`; `terminate` has no effect on them.
"""

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import TypeVar
from weakref import WeakSet

Started = TypeVar("Started")

_PR_SET_PDEATHSIG = 1

_GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


_starter = ThreadPoolExecutor(1, thread_name_prefix="tokenmux-starter")
"""One thread that lives as long as this process; every child is started by it and inherits its signal
mask."""

_children: WeakSet[BaseProcess] = WeakSet()


def start(process: BaseProcess) -> None:
    """Start a child that lives until it ends, is ended, or this process ends. Raises what `process.start`
    raises."""
    # It starts a process of its own with the first child, and unblocks these signals afterwards.
    started(resource_tracker.ensure_running).result()
    started(process.start).result()
    _children.add(process)


def started(start_child: Callable[[], Started]) -> Future[Started]:
    """Run `start_child`, which starts a child process in whatever way, on the thread that lasts."""

    def deaf() -> Started:
        signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
        return start_child()

    return _starter.submit(deaf)


def _kill_children() -> None:
    """At exit, multiprocessing asks daemons to terminate and waits for them; these would not hear it."""
    for process in list(_children):
        if process.is_alive():
            process.kill()


atexit.register(_kill_children)


def die_with_parent(parent: int) -> None:
    """Called in the child, with the parent's process id: SIGKILL this process when the parent ends, or if
    it has ended already."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
