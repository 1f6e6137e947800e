"""A child process of the front that runs foreign content: templates, tokenizers, modelling code, file
formats.

It is spawned, not forked, does one piece of work at a time, and is killed if a piece takes too long. It dies
with the front (`tokenmux.processes.orphans`). Its answers are JSON and bytes, so that a child that was taken
over can lie about its own model, but do nothing else to the front.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Thread
from typing import Any

from tokenmux.core.errors import ErrorCode, code_named, error_of
from tokenmux.processes import orphans
from tokenmux.server.children.frames import BrokenFrame, pack, read_async

PATIENCE = 6
"""Factor from processor time to wall time: a piece of work may have to wait for a processor."""

_SECRET = ("KEY", "PASSWORD", "SECRET", "TOKEN")
"""Environment variables whose names contain such a word are not passed to children."""


class ChildEnded(Exception):
    """The process ended in the middle of a piece of work, or sent something that is not a message."""


class LimitExceeded(Exception):
    """A piece of work took longer than it may; the process has been killed."""


@dataclass(frozen=True, slots=True)
class ChildAnswer:
    header: dict[str, Any]
    payload: bytes

    def checked(self) -> "ChildAnswer":
        """Return this answer, or raise the error that it holds, as an error of our tree."""
        if "error" not in self.header:
            return self
        code = code_named(self.header["error"], ErrorCode.BAD_CHECKPOINT)
        raise error_of(code, str(self.header.get("message", "")))


class Child:
    """One child process. `start` it, `ask` it one thing at a time, `kill` it."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, module: str, *, memory_bytes: int) -> "Child":
        """Run `python -m module` with `tokenmux.server.children.child_main.run` in it. Raises OSError if
        no more processes can be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [
                sys.executable,
                "-P",
                "-m",
                module,
                str(theirs.fileno()),
                str(os.getpid()),
                str(memory_bytes),
            ]
            environment = {
                name: value
                for name, value in os.environ.items()
                if not any(word in name.upper().split("_") for word in _SECRET)
            }
            environment |= {
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "CUDA_VISIBLE_DEVICES": "",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            try:
                process = await asyncio.wrap_future(
                    orphans.started(
                        lambda: subprocess.Popen(
                            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env=environment
                        )
                    )
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ask(
        self,
        header: Mapping[str, object],
        payload: bytes = b"",
        *,
        limit_s: float,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> ChildAnswer:
        """Have a piece of work done. `limit_s` limits the time without an answer or progress, in seconds of
        processor time, so that a busy machine is not held against the child; in wall time it may take
        `PATIENCE` times as long.

        Raises LimitExceeded and ChildEnded; the process is gone then.
        """
        try:
            self._writer.write(pack(header, payload))
            while True:
                answer, beside = await self._next(limit_s)
                if "progress" not in answer:
                    return ChildAnswer(answer, beside)
                if progress is not None:
                    progress(answer)
        except (EOFError, OSError, BrokenFrame) as error:
            self.kill()
            raise ChildEnded(await asyncio.to_thread(self._how_it_ended)) from error
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the process at once. A separate thread reaps it, so that nothing waits for it."""
        self._process.kill()
        self._writer.close()
        Thread(target=self._process.wait, name="reaper", daemon=True).start()

    async def _next(self, limit_s: float) -> tuple[dict[str, Any], bytes]:
        reading = asyncio.ensure_future(read_async(self._reader))
        began_s, computed_s = time.monotonic(), self._computed_s()
        try:
            wait_s = limit_s
            while not (await asyncio.wait((reading,), timeout=wait_s))[0]:
                left_s = min(
                    limit_s - (self._computed_s() - computed_s),
                    PATIENCE * limit_s - (time.monotonic() - began_s),
                )
                if left_s <= 0:
                    raise LimitExceeded
                wait_s = max(left_s, limit_s / 20)
            return reading.result()
        finally:
            if not reading.done():
                reading.cancel()

    def _computed_s(self) -> float:
        """Processor time of the process so far, or wall time if the system does not tell."""
        if sys.platform != "linux":
            return time.monotonic()
        try:
            # The clock that clock_getcpuclockid(3) names.
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:  # it has ended, as the reader will notice
            return 0.0

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its process does not end"
        return (
            f"its process was ended by signal {-status}"
            if status < 0
            else f"its process ended with status {status}"
        )
