"""Reads that may never return (a dead network file system, a pipe in place of a file) block one fetch, not
all.

A read runs on a thread of its own. If it shows no progress for `patience_s` it is given up with a reason: the
next read gets a new thread, and the old one ends when its read returns, if ever. Until then it keeps the
memory into which it writes. A source that hangs is not read again before its read has returned, so each image
holds at most one thread, and all together `MAX_STUCK`.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from tokenmux.core.clock import Clock
from tokenmux.core.errors import Unavailable
from tokenmux.core.facts import Image, ImageId
from tokenmux.device.channel import ChannelThread

PATIENCE_S = 30.0
"""Time limit for the next 16 MiB: half a megabyte a second is slower than any usable disk or network file
system."""

PREPARING_S = 600.0
PREPARED_BYTES_PER_S = 20e6
"""A complete image is then arranged for the processor, and its model's skeleton built: the disk is not to
blame for that time."""

MAX_STUCK = 64
"""Limit of threads that hang. Beyond it, with their memory lost, only a new process helps."""

ToldBytes = Callable[[int], None]
"""Called with the size of every piece that was read, in bytes."""


class GivenUpError(Exception):
    """Raised in a read that has been given up, if it continues after all; or in the thread that waits for
    it, if the device closes."""


@dataclass(slots=True, eq=False)
class _Reading:
    n_left: int
    patience_s: float
    sign_s: float
    given_up: bool = False
    over: bool = False
    error: BaseException | None = None


class Reader:
    """Runs reads with a time limit; see the module. `read` is called from one thread, the fetch channel's;
    `close` from any."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._patience_s = PATIENCE_S
        self._changed = threading.Condition()
        self._closing = False
        self._stuck: set[ImageId] = set()
        self._thread = self._new_thread()

    def read(
        self,
        images: tuple[Image, ...],
        job: Callable[[ToldBytes], None],
        over: Callable[[], None],
        report: ToldBytes,
    ) -> None:
        """Run `job`, which reads the images and reports every piece; `report` is called with each. Raises
        what the job raises.

        Raises Unavailable if the job shows no progress for too long, or an earlier read of an image still
        hangs, and RuntimeError if too much hangs. `over` is called once the job has ended, however late, or
        cannot begin: nothing reads into its memory any longer.
        """
        names = {image.id for image in images}
        if self._stuck & names:
            over()
            raise Unavailable("an earlier read of its weights still hangs: is their disk or network there?")
        reading = _Reading(sum(image.n_bytes for image in images), self._patience_s, self._clock.now_s())

        def told(n_bytes: int) -> None:
            report(n_bytes)
            with self._changed:
                if reading.given_up:
                    raise GivenUpError
                reading.sign_s = self._clock.now_s()
                reading.n_left -= n_bytes
                if reading.n_left <= 0:
                    n_bytes = sum(image.n_bytes for image in images)
                    reading.patience_s = max(self._patience_s, PREPARING_S + n_bytes / PREPARED_BYTES_PER_S)

        def run() -> None:
            try:
                job(told)
            except BaseException as error:  # noqa: BLE001 - raised again by who waits
                reading.error = error
            over()
            with self._changed:
                reading.over = True
                self._stuck -= names
                self._changed.notify_all()

        self._thread.submit(0, run)
        with self._changed:
            while not (reading.over or self._closing) and (left_s := self._left_s(reading)) > 0:
                self._changed.wait(left_s)
            if not reading.over:
                reading.given_up = True
                self._stuck |= names
        if reading.given_up:
            self._replace_thread()
            raise GivenUpError if self._closing else self._too_slow(reading)
        if reading.error is not None:
            raise reading.error

    def close(self) -> None:
        """Stop waiting for anything."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.close(0.0)

    def _left_s(self, reading: _Reading) -> float:
        return reading.sign_s + reading.patience_s - self._clock.now_s()

    def _too_slow(self, reading: _Reading) -> Exception:
        if len(self._stuck) > MAX_STUCK:
            return RuntimeError(f"{len(self._stuck)} reads of weights hang")
        return Unavailable(
            f"reading its weights made no progress for {reading.patience_s:g} s and was given up: "
            "is their disk or network there?"
        )

    def _replace_thread(self) -> None:
        self._thread.close(0.0)
        self._thread = self._new_thread()

    def _new_thread(self) -> ChannelThread:
        return ChannelThread("reader", lambda _, error: None)
