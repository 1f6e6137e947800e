"""Work that operators ask for and that takes long: it goes on without its caller, who can look at it, watch
it and cancel it.

All that are under way are kept, and the last `MAX_ENDED` that ended.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from tokenmux.core.errors import NotFound, Overloaded, TokenmuxError, WorkCancelled
from tokenmux.core.progress import Progress
from tokenmux.server.front.cancellation import Cancellation
from tokenmux.server.front.changes import Changes, Watchers
from tokenmux.server.front.incidents import told_to_client

MAX_RUNNING = 16
MAX_ENDED = 100
MAX_OPERATION_WATCHERS = 128
MAX_DOING_CHARS = 200
_LARGEST = 2**63

LongWork = Callable[[Progress, Cancellation], Coroutine[Any, Any, object]]
"""Begins the work; the coroutine ends when it is done, and raises if it is not."""


class OperationState(Enum):
    """Where an operation is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class OperationView:
    """An operation at one moment. `done` and `total` are of what it is `doing`; 0 of 0 if that is not known.
    `error` is why it failed or was cancelled."""

    name: str
    model: str
    state: OperationState = OperationState.RUNNING
    doing: str = ""
    done: int = 0
    total: int = 0
    elapsed_s: float = 0.0
    error: TokenmuxError | None = None


class _Operation:
    def __init__(self, view: OperationView, began_s: float) -> None:
        self.view = view
        self.began_s = began_s
        self.cancellation = Cancellation()
        self.changes = Changes()
        self.task: asyncio.Task[None] | None = None


class LongOperations:
    """All operations of a server. On one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[str, _Operation] = {}
        self._watchers = Watchers(
            "operations", MAX_OPERATION_WATCHERS, "ask for it from time to time instead"
        )

    def start(self, model: str, work: LongWork) -> OperationView:
        """Begin work about a model. Raises Overloaded, and what `work` raises when it is called."""
        n_running = sum(kept.view.state is OperationState.RUNNING for kept in self._kept.values())
        if n_running >= MAX_RUNNING:
            raise Overloaded(
                f"{n_running} operations are under way: try again when one has ended", limit=MAX_RUNNING
            )
        operation = _Operation(OperationView(f"operations/{secrets.token_hex(8)}", model), self._clock())
        carried_out = work(self._progress_of(operation), operation.cancellation)
        self._kept[operation.view.name] = operation
        operation.task = asyncio.create_task(
            self._carry_out(operation, carried_out), name=operation.view.name
        )
        return operation.view

    def get(self, name: str) -> OperationView:
        """Raises NotFound."""
        return self._shown(self._find(name))

    def all(self) -> Sequence[OperationView]:
        """The newest first."""
        return [self._shown(operation) for operation in reversed(self._kept.values())]

    def cancel(self, name: str) -> None:
        """Ask an operation to end. Raises NotFound."""
        self._find(name).cancellation.ask()

    async def watch(self, name: str) -> AsyncGenerator[OperationView, None]:
        """The operation now and after each change, until it has ended. Raises NotFound, and Overloaded if too
        many watch."""
        operation = self._find(name)
        with self._watchers.place():
            while True:
                version = operation.changes.version
                view = self._shown(operation)
                yield view
                if view.state is not OperationState.RUNNING:
                    return
                await operation.changes.after(version)

    def _find(self, name: str) -> _Operation:
        operation = self._kept.get(name)
        if operation is None:
            raise NotFound(f"there is no operation {name[:64]!r}: if it ended long ago, it was forgotten")
        return operation

    def _shown(self, operation: _Operation) -> OperationView:
        if operation.view.state is not OperationState.RUNNING:
            return operation.view
        return replace(operation.view, elapsed_s=self._clock() - operation.began_s)

    async def _carry_out(self, operation: _Operation, work: Coroutine[Any, Any, object]) -> None:
        state = OperationState.DONE
        error: TokenmuxError | None = None
        try:
            await work
        except WorkCancelled as cancelled:
            state, error = OperationState.CANCELLED, cancelled
        except Exception as failure:  # noqa: BLE001 - whatever it was is the operation's end
            state, error = OperationState.FAILED, told_to_client(failure)
        operation.view = replace(self._shown(operation), state=state, error=error)
        operation.changes.notify()
        ended = [name for name, kept in self._kept.items() if kept.view.state is not OperationState.RUNNING]
        for name in ended[: max(0, len(ended) - MAX_ENDED)]:
            del self._kept[name]

    def _progress_of(self, operation: _Operation) -> Progress:
        loop = asyncio.get_running_loop()

        def take(doing: str, done: int, total: int) -> None:
            if operation.view.state is OperationState.RUNNING:
                bounded = (min(max(0, number), _LARGEST) for number in (done, total))
                so_far, whole = bounded
                operation.view = replace(
                    operation.view, doing=doing[:MAX_DOING_CHARS], done=so_far, total=whole
                )
                operation.changes.notify()

        def report(doing: str, done: int, total: int) -> None:
            with suppress(RuntimeError):  # the loop may be gone
                loop.call_soon_threadsafe(take, doing, done, total)

        return report
