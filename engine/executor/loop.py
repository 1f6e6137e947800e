"""The thread that runs an engine. It sleeps until a message or a completion arrives, or until it has to
report that it is alive."""

import logging
import traceback
from collections.abc import Callable
from queue import Empty, SimpleQueue

from tokenmux.core.clock import Clock
from tokenmux.core.request import RequestId
from tokenmux.device.device_protocol import OperationDone
from tokenmux.executor.engine import Engine
from tokenmux.messages.commands import Order

_log = logging.getLogger(__name__)

BEAT_S = 1.0
"""Seconds between reports that the loop is alive, busy or idle."""


class EngineLoop:
    """An inbox that any thread may fill (it is the device's `Post`), and `run`, which empties it."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[Callable[[Engine], None]] = SimpleQueue()

    def send(self, order: Order) -> None:
        self._inbox.put(lambda engine: engine.receive(order))

    def stop(self) -> None:
        """The front is gone."""
        self._inbox.put(lambda engine: engine.stop())

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        self._inbox.put(lambda engine: engine.drawn(at_s, tokens))

    def progress(self, operation: int, share: float) -> None:
        self._inbox.put(lambda engine: engine.progress(operation, share))

    def done(self, completion: OperationDone) -> None:
        self._inbox.put(lambda engine: engine.done(completion))

    def broken(self, operation: int, error: BaseException) -> None:
        detail = "".join(traceback.format_exception(error))
        _log.error("operation %d failed on the device:\n%s", operation, detail)
        self.fail(f"operation {operation} failed on the device: {error!r}")

    def fail(self, detail: str) -> None:
        """Report that the worker cannot continue."""
        self._inbox.put(lambda engine: engine.broken(detail))

    def run(self, engine: Engine, clock: Clock) -> None:
        """Serve until the engine stops. An error in the engine itself is reported as `Broken`, then
        raised."""
        beat_s = clock.now_s()
        try:
            engine.beat()
            while not engine.stopped:
                self._take_one(engine, clock, beat_s + BEAT_S)
                self._take_rest(engine)
                engine.pump()
                if clock.now_s() >= beat_s + BEAT_S:
                    beat_s = clock.now_s()
                    engine.beat()
        except Exception as error:
            engine.broken(f"the engine failed: {error!r}")
            engine.pump()
            raise

    def _take_one(self, engine: Engine, clock: Clock, beat_s: float) -> None:
        due_s = beat_s if engine.next_report_due_s is None else min(beat_s, engine.next_report_due_s)
        try:
            self._inbox.get(timeout=max(0.0, due_s - clock.now_s()))(engine)
        except Empty:
            return

    def _take_rest(self, engine: Engine) -> None:
        """Handle everything else that has arrived before the policy is asked again."""
        while not self._inbox.empty():
            self._inbox.get()(engine)
