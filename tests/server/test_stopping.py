"""A process that was told to end does, whatever hangs in it."""

import subprocess
import sys
from queue import SimpleQueue

from tokenmux.server.stopping import LastResort

WAIT_S = 60.0

STUCK = """
import asyncio, os, signal, sys, threading
from tokenmux.server.app import until_signalled
from tokenmux.server.stopping import LastResort

class Front:
    n_live = 0
    async def drain(self): pass

async def main():
    waiting = asyncio.create_task(until_signalled(Front(), 0.0, LastResort(0.0, stop_s=0.0)))
    await asyncio.sleep(0)
    read, write = os.pipe()
    os.write(1, b"stuck\\n")
    os.read(read, 1)  # the event loop hangs for ever

asyncio.run(main())
"""


def test_nothing_happens_before_the_word_and_the_end_comes_after_it() -> None:
    ended: SimpleQueue[int] = SimpleQueue()
    resort = LastResort(3600.0, end=ended.put, stop_s=0.0)
    resort.draining()
    assert ended.empty()
    resort.hurrying()
    assert ended.get(timeout=WAIT_S) == 1


def test_a_signal_ends_a_server_whose_event_loop_hangs() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stuck\n"
        process.terminate()
        _, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == 1
        assert b"does not end by itself" in errors
    finally:
        process.kill()
