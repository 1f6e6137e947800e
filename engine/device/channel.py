"""One channel of a real device: a thread that carries out jobs in order and sleeps in between."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

CHANNEL_CLOSE_S = 1.0
"""A channel that has not ended by then is inside a step or a read, or hangs in a driver, and ends with the
process. Waiting for four of them takes less time than the front allows before it kills the process."""


class ChannelThread:
    """Runs jobs one after another. `failed` is called if a job raises; later jobs still run."""

    def __init__(self, name: str, failed: Callable[[int, BaseException], None]) -> None:
        self._jobs: SimpleQueue[tuple[int, Callable[[], None]] | None] = SimpleQueue()
        self._failed = failed
        self._thread = Thread(target=self._run, name=f"tokenmux-{name}", daemon=True)
        self._thread.start()

    def submit(self, operation: int, job: Callable[[], None]) -> None:
        self._jobs.put((operation, job))

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish the jobs already submitted, then end the thread. False if it has not ended within
        `timeout_s`."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            operation, job = item
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the engine must hear of it
                self._failed(operation, error)
            del item, job  # else they would keep the job's memory alive while the thread sleeps
