"""Children of a process that was killed are killed too. Real processes; every wait is for an event."""

import os
import select
import signal
import subprocess
import sys
import threading
from multiprocessing.process import BaseProcess

import pytest

from tokenmux.engine.runtime import orphans

PATIENCE_MS = 30_000

CHILD = """
import os, signal, sys
from tokenmux.engine.runtime.orphans import die_with_parent
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
signal.pause()
"""

PARENT = """
import os, signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
signal.pause()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_a_child_dies_with_its_parent(stopped: bool) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        handle = os.pidfd_open(child)
        if stopped:
            os.kill(child, signal.SIGSTOP)
        parent.kill()
        ended = select.poll()
        ended.register(handle, select.POLLIN)
        assert ended.poll(PATIENCE_MS), "the child outlived its parent"
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "1"], stdin=subprocess.DEVNULL, timeout=100, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_children_are_started_by_one_thread_that_lasts() -> None:
    class Noting:
        threads: list[threading.Thread] = []  # noqa: RUF012

        def start(self) -> None:
            self.threads.append(threading.current_thread())

    noting: BaseProcess = Noting()  # type: ignore[assignment]
    for _ in range(2):
        asking = threading.Thread(target=orphans.start, args=(noting,))
        asking.start()
        asking.join()
    first, second = Noting.threads
    assert first is second
    assert first.is_alive()
