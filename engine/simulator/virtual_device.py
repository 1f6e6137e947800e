"""The device that computes nothing: every operation completes after a cost model's duration, on virtual time.

It carries out the plans of simulated instances, and of a node's in tests and benchmarks
(`tokenmux.testing.virtual_node`), without weights, threads or waiting. Every token that it draws is
0; the caller says how many. A repeated step is one completion; if it is interrupted, its end moves to the end
of the present iteration.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from tokenmux.core.cost import CostModel, burst_ends_s
from tokenmux.core.event import CopyDone, Resized, StepDone
from tokenmux.core.facts import ModelId
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedCopy,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.simulator.doubts import SURE, Doubts
from tokenmux.simulator.profiles import ProfiledCost
from tokenmux.simulator.virtual_clock import VirtualClock

OnDrawn = Callable[[float, tuple[tuple[RequestId, int], ...]], None]
"""Called at the end of every iteration of a step, with the time, and each request with the token that it
drew."""


class CompletionPost(Protocol):
    """Receives completions."""

    def done(self, completion: StepDone | CopyDone | Resized) -> None: ...


class VirtualDevice:
    """Completes operations of `instance` on `clock`."""

    def __init__(
        self,
        instance: Instance,
        cost: CostModel,
        clock: VirtualClock,
        post: CompletionPost,
        left: Callable[[RequestId], int],
        *,
        on_drawn: OnDrawn | None = None,
        doubts: Doubts = SURE,
    ) -> None:
        """`left` gives the number of tokens that a request has yet to draw. `doubts` add to the durations of
        `cost`.

        Without `on_drawn`, the iterations of a step cost no time to simulate.
        """
        self._instance = instance
        self._cost = cost
        self._ends_s = cost.burst_ends_s if isinstance(cost, ProfiledCost) else partial(burst_ends_s, cost)
        self._clock = clock
        self._post = post
        self._left = left
        self._on_drawn = on_drawn
        self._doubts = doubts
        self._stepped: ModelId | None = None
        """The model that stepped last."""
        self._step: tuple[StartedStep, tuple[float, ...]] | None = None
        self._copies: set[int] = set()
        self._is_resizing = False

    @property
    def step_end_s(self) -> float:
        """When the step in flight will end; 0 if there is none."""
        return self._step[1][-1] if self._step else 0.0

    def step_so_far(self) -> StepDone | None:
        """The step in flight as if it had ended after its latest whole iteration; None if there is none."""
        if self._step is None:
            return None
        started, ends_s = self._step
        ended_s = tuple(end_s for end_s in ends_s if end_s <= self._clock.now_s())
        return self._done(started, ended_s) if ended_s else None

    def start(self, started: Started) -> None:
        if isinstance(started, StartedStep):
            self._start_step(started)
        else:
            self._copies.add(started.id)
            done_s = self._clock.now_s() + self._copy_s(started)
            self._clock.call_at(done_s, partial(self._complete_copy, started.id))

    def interrupt(self) -> None:
        if self._step is None:
            return
        started, ends_s = self._step
        # An iteration that ends now has been reported, and the next one has begun.
        n = sum(end_s <= self._clock.now_s() for end_s in ends_s) + 1
        if n < len(ends_s):
            self._expect(started, ends_s[:n])

    def supersede(self, operation: int) -> None:
        now_s = self._clock.now_s()
        self._clock.call_at(now_s, partial(self._complete_copy, operation, superseded=True))

    def resize(self, arena_bytes: int) -> None:
        """Reallocate the arena, which takes no time: there is no memory."""
        self._is_resizing = True
        self._clock.call_at(self._clock.now_s(), partial(self._complete_resize, arena_bytes))

    def close(self) -> None:
        """Drop everything in flight: none of it completes."""
        self._step = None
        self._copies.clear()
        self._is_resizing = False

    def _start_step(self, started: StartedStep) -> None:
        step, now_s = started.operation, self._clock.now_s()
        repeat = min([step.repeat, *(self._left(chunk.request) for chunk in step.chunks)])
        switches, self._stepped = self._stepped != started.model.id, started.model.id
        ends_s = self._ends_s(started.model, started.work, repeat, now_s)
        ends_s = self._doubts.stretched(ends_s, now_s, switches, started.work.beside_copy)
        if self._on_drawn is not None:
            for iteration, end_s in enumerate(ends_s):
                self._clock.call_at(end_s, partial(self._draw, started, iteration, self._on_drawn))
        self._expect(started, ends_s)

    def _copy_s(self, started: StartedCopy) -> float:
        if isinstance(started, StartedCompaction):
            return self._cost.move_s(started.n_bytes)
        seconds = self._cost.copy_s(started.channel, started.n_bytes)
        match started:
            case StartedActivation():
                return seconds + self._doubts.activation_s
            case StartedPageIn(paged=paged) | StartedPageOut(paged=paged):
                return seconds + self._doubts.block_copy_s * sum(len(one.transfers) for one in paged)
        return seconds

    def _expect(self, started: StartedStep, ends_s: tuple[float, ...]) -> None:
        self._step = (started, ends_s)
        self._clock.call_at(ends_s[-1], partial(self._complete_step, started, ends_s))

    def _draw(self, started: StartedStep, iteration: int, on_drawn: OnDrawn) -> None:
        if self._step is not None and self._step[0] is started and iteration < len(self._step[1]):
            on_drawn(self._clock.now_s(), tuple((request, 0) for request in self._drawing(started)))

    def _drawing(self, started: StartedStep) -> list[RequestId]:
        """The requests that draw a token in every iteration of the step."""
        requests = self._instance.requests
        return [
            c.request
            for c in started.operation.chunks
            if c.start + c.n_tokens == requests[c.request].n_tokens
        ]

    def _complete_copy(self, operation: int, superseded: bool = False) -> None:
        if operation in self._copies:
            self._copies.remove(operation)
            self._post.done(CopyDone(self._clock.now_s(), operation, superseded=superseded))

    def _complete_resize(self, arena_bytes: int) -> None:
        if self._is_resizing:
            self._is_resizing = False
            self._post.done(Resized(self._clock.now_s(), arena_bytes))

    def _complete_step(self, started: StartedStep, ends_s: tuple[float, ...]) -> None:
        """Complete the step, unless it has been interrupted since and ends earlier, or is gone."""
        if self._step is None or self._step[1] is not ends_s:
            return
        self._step = None
        self._post.done(self._done(started, ends_s))

    def _done(self, started: StartedStep, ends_s: tuple[float, ...]) -> StepDone:
        finished = tuple(
            (request, FinishReason.STOP)
            for request in self._drawing(started)
            if len(ends_s) >= self._left(request)
        )
        return StepDone(ends_s[-1], started.id, ends_s, finished)
