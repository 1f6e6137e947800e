"""Children of a process that was killed are killed too. Real processes; every wait is for an event."""

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from tokenmux.processes import orphans

PATIENCE_MS = 30_000

CHILD = """
import os, signal, sys
from tokenmux.processes.orphans import die_with_parent
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
    threads: list[threading.Thread] = []
    for _ in range(2):
        asking = threading.Thread(
            target=lambda: orphans.started(lambda: threads.append(threading.current_thread())).result()
        )
        asking.start()
        asking.join()
    first, second = threads
    assert first is second
    assert first.is_alive()


BORN = """
import subprocess, sys
from tokenmux.processes import orphans

wait = [sys.executable, "-c", "import signal; signal.pause()"]
child = orphans.started(lambda: subprocess.Popen(wait, stdout=subprocess.DEVNULL,
stderr=subprocess.DEVNULL)).result()
status = open(f"/proc/{child.pid}/status").read()
(blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:")]
print(child.pid, blocked, flush=True)
"""


def test_children_are_born_deaf_to_the_groups_signals_and_keep_nobody_from_ending() -> None:
    """The parent ends without a word to its child."""
    done = subprocess.run(
        [sys.executable, "-c", BORN], capture_output=True, text=True, timeout=100, check=True
    )
    child, blocked = done.stdout.split()
    os.kill(int(child), signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert int(blocked, 16) & 1 << (number - 1)
