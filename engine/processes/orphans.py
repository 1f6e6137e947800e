"""Child processes that die with their parent, even if they are stopped, hung, or still importing: Linux kills
them (`PR_SET_PDEATHSIG`).

The child calls `die_with_parent` before anything else. The parent starts it with `started`, because Linux
sends the signal when the *thread* that started the child ends, not the process: a child started from a pool's
thread would die with the pool. On other systems `die_with_parent` does nothing; a child then ends when its
pipe closes.

A signal to the whole process group (Ctrl-C, systemd's SIGTERM) is the parent's to handle: children are
started with SIGINT and SIGTERM blocked, and are ended by `kill`; `terminate` has no effect on them.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Child = TypeVar("_Child")

_PR_SET_PDEATHSIG = 1

_GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})


_starter = ThreadPoolExecutor(1, thread_name_prefix="tokenmux-starter")
"""One thread that lives as long as this process. It starts every child, which inherits its signal mask."""


def started(start_child: Callable[[], _Child]) -> Future[_Child]:
    """Run `start_child`, which starts a child process in some way, on the permanent thread."""

    def deaf() -> _Child:
        signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
        return start_child()

    return _starter.submit(deaf)


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when the parent ends, or now if it has ended. Called in the child with the
    parent's process id."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != parent:  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
