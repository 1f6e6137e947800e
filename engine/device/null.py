"""The device that computes nothing: every operation completes after the cost model's duration, on virtual
time.

With it the whole engine runs in a test without weights, threads or waiting. Every token that it draws is 0;
the caller says how many.
"""

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush

from tokenmux.core.cost import CostModel, burst_ends_s
from tokenmux.core.event import SUPERSEDED, CopyDone, StepDone
from tokenmux.core.plan import Compact, Step
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.started import Started
from tokenmux.device.device_protocol import Post
from tokenmux.scheduler.instance.instance import Instance


class VirtualClock:
    """Time that passes only in `run`. Calls happen at their times; those of equal time in the order of
    `call_at`."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def now_s(self) -> float:
        return self._now_s

    def call_at(self, at_s: float, call: Callable[[], None]) -> None:
        heappush(self._calls, (at_s, self._sequence, call))
        self._sequence += 1

    def run(self, until_s: float = float("inf")) -> None:
        """Let time pass until nothing is left to do, or until `until_s`."""
        while self._calls and self._calls[0][0] <= until_s:
            self._now_s, _, call = heappop(self._calls)
            call()


class NullDevice:
    """Completes operations of `instance` on `clock`. `left` gives the number of tokens that a request has
    yet to draw."""

    def __init__(
        self,
        instance: Instance,
        cost: CostModel,
        clock: VirtualClock,
        post: Post,
        left: Callable[[RequestId], int],
    ) -> None:
        self._instance = instance
        self._cost = cost
        self._clock = clock
        self._post = post
        self._left = left
        self._step: tuple[Started, tuple[float, ...]] | None = None
        self._copies: set[int] = set()

    def start(self, started: Started) -> None:
        now_s = self._clock.now_s()
        operation = started.operation
        if isinstance(operation, Step):
            assert started.model is not None
            repeat = min([operation.repeat, *(self._left(chunk.request) for chunk in operation.chunks)])
            ends_s = burst_ends_s(self._cost, started.model, started.work, repeat, now_s)
            for iteration, end_s in enumerate(ends_s):
                self._clock.call_at(end_s, partial(self._draw, started, iteration))
            self._expect(started, ends_s)
            return
        if isinstance(operation, Compact):
            seconds = self._cost.move_s(started.n_bytes)
        else:
            seconds = self._cost.copy_s(started.channel, started.n_bytes)
        done = CopyDone(now_s + seconds, started.id)
        self._copies.add(started.id)
        self._clock.call_at(done.at_s, lambda: self._complete_copy(done))

    def interrupt(self) -> None:
        if self._step is None:
            return
        started, ends_s = self._step
        n = next(i for i, end_s in enumerate(ends_s) if end_s >= self._clock.now_s()) + 1
        if n < len(ends_s):
            self._expect(started, ends_s[:n])

    def supersede(self, operation: int) -> None:
        done = CopyDone(self._clock.now_s(), operation, SUPERSEDED)
        self._clock.call_at(done.at_s, lambda: self._complete_copy(done))

    def resize(self, arena_bytes: int) -> None:
        """Do nothing: there is no memory."""

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _expect(self, started: Started, ends_s: tuple[float, ...]) -> None:
        expected = self._step = (started, ends_s)
        self._clock.call_at(ends_s[-1], lambda: self._complete(expected))

    def _draw(self, started: Started, iteration: int) -> None:
        if self._step is None or self._step[0] is not started or iteration >= len(self._step[1]):
            return
        step = started.operation
        assert isinstance(step, Step)
        drawing = (c.request for c in step.chunks if self._draws(c.request, c.start + c.n_tokens))
        self._post.drawn(self._clock.now_s(), tuple((request, 0) for request in drawing))

    def _complete_copy(self, done: CopyDone) -> None:
        if done.operation in self._copies:
            self._copies.remove(done.operation)
            self._post.done(done)

    def _complete(self, expected: tuple[Started, tuple[float, ...]]) -> None:
        if self._step is not expected:
            return
        self._step = None
        started, ends_s = expected
        step = started.operation
        assert isinstance(step, Step)
        finished = []
        for chunk in step.chunks:
            draws = len(ends_s) if self._draws(chunk.request, chunk.start + chunk.n_tokens) else 0
            if draws and draws >= self._left(chunk.request):
                finished.append((chunk.request, FinishReason.STOP))
        self._post.done(StepDone(ends_s[-1], started.id, ends_s, tuple(finished)))

    def _draws(self, request: RequestId, end: int) -> bool:
        return end == self._instance.requests[request].n_tokens
