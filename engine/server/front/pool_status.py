"""The state of the whole pool as a value, for those who ask for it once and those who watch it."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata

from tokenmux.messages.reports import NodeStatus
from tokenmux.server.front.changes import Changes, Watchers
from tokenmux.server.front.node_side import NodeSide
from tokenmux.server.front.request_rules import check_seconds
from tokenmux.server.front.shown_models import ShownModel, ShownModels
from tokenmux.server.front.usage import Usage

MAX_STATUS_WATCHERS = 128
WATCH_INTERVAL_S = 0.1
"""Shortest time between two messages to a watcher."""
FRESH_S = 0.05
"""One status serves all callers within this time, unless something changed: for 1,000 models it takes 20
ms."""


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The pool at one moment. `node` is None if there is none, or it has not reported yet."""

    version: str
    uptime_s: float
    n_requests: int
    max_requests: int
    n_restarts: int
    node: NodeStatus | None
    usage: Usage
    models: tuple[ShownModel, ...]

    @property
    def devices_saved(self) -> float:
        """Compared with one device for each model while it has requests
        (`tokenmux.scheduler.metrics.counters.Metrics.model_work_s`); 0 before any work."""
        work_s, model_work_s = self._work()
        return model_work_s / work_s - self.n_devices if work_s else 0.0

    @property
    def devices_saved_dedicated(self) -> int:
        """Compared with one device for each model requested within the last hour; 0 before any work."""
        return self.node.n_models_used - self.n_devices if self.node is not None and self._work()[0] else 0

    @property
    def n_devices(self) -> int:
        return 0 if self.node is None else len(self.node.devices)

    def _work(self) -> tuple[float, float]:
        """Seconds with work, and the same for each model that had some."""
        return (0.0, 0.0) if self.node is None else (self.node.work_s, self.node.model_work_s)


class StatusBoard:
    """Makes statuses and gives them to watchers."""

    def __init__(
        self,
        shown: ShownModels,
        node: NodeSide,
        changes: Changes,
        *,
        n_live: Callable[[], int],
        max_requests: int,
        draining: Callable[[], bool],
    ) -> None:
        self._shown = shown
        self._node = node
        self._changes = changes
        self._n_live = n_live
        self._max_requests = max_requests
        self._draining = draining
        self._watchers = Watchers("the status", MAX_STATUS_WATCHERS, "ask for it less often instead")
        self._version = installed_version()
        self._started_s = time.monotonic()
        self._latest: PoolSnapshot | None = None
        self._latest_of: tuple[int, int] | None = None
        """The version of `changes`, and the number of requests, that `_latest` shows."""

    def now(self) -> PoolSnapshot:
        """The present status, one object for all callers at the same moment."""
        uptime_s = time.monotonic() - self._started_s
        shows = (self._changes.version, self._n_live())
        latest = self._latest
        if latest is None or shows != self._latest_of or uptime_s - latest.uptime_s > FRESH_S:
            latest = self._latest = self._make(uptime_s)
            self._latest_of = shows
        return latest

    @asynccontextmanager
    async def watch(self, min_interval_s: float) -> AsyncIterator[AsyncIterator[PoolSnapshot]]:
        """Yield a stream of statuses: one now, then one after each change, at most one every
        `min_interval_s`.

        Raises InvalidRequest, and Overloaded if there are too many watchers. The stream ends when the server
        drains, so that watchers do not delay its end.
        """
        check_seconds("min_interval_s", min_interval_s)
        with self._watchers.place():
            async with aclosing(self._statuses(max(min_interval_s, WATCH_INTERVAL_S))) as statuses:
                yield statuses

    async def _statuses(self, interval_s: float) -> AsyncGenerator[PoolSnapshot, None]:
        version = self._changes.version
        while not self._draining():
            yield self.now()
            await asyncio.sleep(interval_s)
            version = await self._changes.after(version)

    def _make(self, uptime_s: float) -> PoolSnapshot:
        return PoolSnapshot(
            version=self._version,
            uptime_s=uptime_s,
            n_requests=self._n_live(),
            max_requests=self._max_requests,
            n_restarts=self._node.n_restarts,
            node=self._node.status,
            usage=self._node.usage,
            models=tuple(self._shown.all()),
        )


def installed_version() -> str:
    """The version of the installed package."""
    try:
        return metadata.version("tokenmux")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
