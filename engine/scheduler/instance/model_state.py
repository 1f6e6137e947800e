"""The live state of one model on an instance, its requests filed so that a policy finds what it needs.

Everything is updated in place, event by event, by the other modules of this package; nothing is ever rebuilt.
The class is a view of `tokenmux.scheduler.policy.instance_policy`.
"""

from collections.abc import Iterator
from math import inf
from typing import Literal

from tokenmux.core.facts import ModelFacts
from tokenmux.core.phases import Residency
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.instance.request_state import Need, RequestState
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.scheduler.metrics.shares import Share, Shares

WARM_TTFTS = 10.0
"""After a request ends, the next one like it is expected for this many of its TTFTs."""


class ModelState:
    """One model of the catalogue and its live requests, each filed under what it needs next."""

    __slots__ = (
        "_asked_at",
        "_cached_at",
        "_deadlines",
        "_due_s",
        "_ledger",
        "_off_device",
        "_runnable_deadlines",
        "_runnable_due_s",
        "_valid_until_s",
        "away",
        "decoding",
        "facts",
        "fetch_after_s",
        "fetch_pause_s",
        "is_moving",
        "last_used_s",
        "load_error",
        "paused",
        "pinned",
        "shares",
        "stage",
        "stepped_since_load",
        "waiting",
        "wanted",
        "warm_ttft_s",
        "warm_until_s",
    )

    def __init__(self, facts: ModelFacts, ledger: Ledger, shares: Shares) -> None:
        self.facts = facts
        self.shares = shares
        self._ledger = ledger
        self.stage: Literal[Residency.LOADING, Residency.RESIDENT] | None = None
        """Where it is on the device. None: not on the device, and the host cache knows the rest."""
        self.is_moving = False
        self.pinned = False
        self.wanted: bool | None = None
        """True if an operator wants it loaded once, False if unloaded, None if neither."""
        self.last_used_s = -inf
        self.fetch_after_s = -inf
        """After a failed fetch, it is not tried again before this time, unless a request waits or an
        operator asks."""
        self.fetch_pause_s = 0.0
        """The pause that led to `fetch_after_s`; the next failure doubles it."""
        self.load_error = ""
        """Why it could not be read from disk the last time. Empty if that did not fail, or an operator has
        asked since."""
        self.stepped_since_load = False
        self.warm_until_s = -inf
        self.warm_ttft_s = inf
        """TTFT of the requests to which `warm_until_s` refers."""
        self.waiting: dict[RequestId, RequestState] = {}
        self.decoding: dict[RequestId, RequestState] = {}
        self.away: dict[RequestId, RequestState] = {}
        self.paused: dict[RequestId, RequestState] = {}
        self._asked_at = (-1, -1)
        self._cached_at = -1
        """The version of the host cache at which all its weights were found there."""
        self._off_device = Residency.DISK
        self._due_s: float | None = None
        self._runnable_due_s: float | None = None
        self._valid_until_s = inf
        """When the next request is deferred, and the two times above change."""
        self._deadlines: dict[Share, float] | None = None
        """By tenant. The attribute without tenants is used while no tenant is ahead of another."""
        self._runnable_deadlines: dict[Share, float] | None = None

    @property
    def residency(self) -> Residency:
        if self.stage is not None:
            return self.stage
        cache_version = self._ledger.cache.version
        if cache_version == self._cached_at:
            return Residency.HOST
        versions = (self._ledger.version, cache_version)
        if versions != self._asked_at:
            self._asked_at, self._off_device = versions, self._find()
        return self._off_device

    def _find(self) -> Residency:
        """Where weights are that are not on the device. Cached, since every event asks for every model."""
        cache = self._ledger.cache
        if all(cache.has(image.id) for image in self.facts.images):
            self._cached_at = cache.version
            return Residency.HOST
        absent = [image.id for image in self._ledger.absent_images(self.facts) if not cache.has(image.id)]
        if not absent:
            return Residency.HOST
        return Residency.FETCHING if all(cache.is_fetching(image) for image in absent) else Residency.DISK

    @property
    def n_live(self) -> int:
        return len(self.waiting) + len(self.decoding) + len(self.away)

    @property
    def has_requests(self) -> bool:
        return bool(self.waiting or self.decoding or self.away or self.paused)

    @property
    def due_s(self) -> float:
        if not self.shares.even:
            if self._deadlines is None:
                self._deadlines = _earliest(self.waiting, self.decoding, self.away)
            return self.shares.earliest_s(self._deadlines)
        if self._due_s is None or self.shares.now_s > self._valid_until_s:
            return self._order()[0]
        return self._due_s

    @property
    def runnable_due_s(self) -> float:
        if not self.shares.even:
            if self._runnable_deadlines is None:
                self._runnable_deadlines = _earliest(self.waiting, self.decoding)
            return self.shares.earliest_s(self._runnable_deadlines)
        if self._runnable_due_s is None or self.shares.now_s > self._valid_until_s:
            return self._order()[1]
        return self._runnable_due_s

    def _order(self) -> tuple[float, float]:
        """`due_s` and `runnable_due_s`, as requests are ordered now."""
        shares = self.shares
        now_s, earliest_s, self._valid_until_s = shares.now_s, inf, inf
        runnable_due_s = inf
        for file in (self.waiting, self.decoding, self.away):
            if file is self.away:
                runnable_due_s = earliest_s
            for request in file.values():
                due_s = shares.ordered_s(
                    request.deadline_s, request.lead_s, request.grace_s, request.deferral_s
                )
                earliest_s = min(earliest_s, due_s)
                deferred_s = request.deadline_s + request.grace_s
                if now_s <= deferred_s < self._valid_until_s:
                    self._valid_until_s = deferred_s
        self._due_s, self._runnable_due_s = earliest_s, runnable_due_s
        return earliest_s, runnable_due_s

    def requests(self) -> Iterator[RequestState]:
        for file in (self.waiting, self.decoding, self.away, self.paused):
            yield from file.values()

    def file(self, request: RequestState) -> None:
        """File the request under what it needs now. Its old file, if any, is the one named by
        `request.need`."""
        request.set_grace()
        need = request.next_need()
        if need is not request.need or request.id not in self._file_of(need):
            self._file_of(request.need).pop(request.id, None)
            request.need = need
            self._file_of(need)[request.id] = request
        self.forget_deadlines()

    def unfile(self, request: RequestState) -> None:
        self._file_of(request.need).pop(request.id, None)
        self.forget_deadlines()

    def keep_warm(self, request: Request, now_s: float) -> None:
        """A request ends: the next one like it is expected for a time. The strictest of the ended ones
        counts, as long as its time lasts."""
        ttft_s = request.service.ttft_s
        if ttft_s <= self.warm_ttft_s or self.warm_until_s <= now_s:
            self.warm_ttft_s, self.warm_until_s = ttft_s, now_s + WARM_TTFTS * ttft_s

    def forget_deadlines(self) -> None:
        self._due_s = self._runnable_due_s = self._deadlines = self._runnable_deadlines = None

    def _file_of(self, need: Need) -> dict[RequestId, RequestState]:
        match need:
            case Need.PREFILL:
                return self.waiting
            case Need.DECODE:
                return self.decoding
            case Need.PAGE_IN:
                return self.away
            case Need.READER:
                return self.paused


def _earliest(*files: dict[RequestId, RequestState]) -> dict[Share, float]:
    """Each tenant's earliest deadline among these requests, advanced by their weights."""
    earliest: dict[Share, float] = {}
    for file in files:
        for request in file.values():
            deadline_s = request.deadline_s - request.lead_s
            if deadline_s < earliest.get(request.share, inf):
                earliest[request.share] = deadline_s
    return earliest
