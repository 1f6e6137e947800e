"""The live state of one request on an instance: a view of `tokenmux.scheduler.policy.instance_policy`."""

from enum import Enum
from typing import TYPE_CHECKING

from tokenmux.core.cost import CostModel
from tokenmux.core.event import Arrived
from tokenmux.core.phases import RequestPhase
from tokenmux.core.prefix import PrefixKey
from tokenmux.core.record import RequestHistory
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.scheduler.instance.long_prompt import LongPrompt
from tokenmux.scheduler.memory.kv_table import KvTable
from tokenmux.scheduler.metrics.artifact_allowance import ArtifactAllowance
from tokenmux.scheduler.metrics.shares import DEFERRAL_TTFTS, Share

if TYPE_CHECKING:  # a request knows its model, which files it
    from tokenmux.scheduler.instance.model_state import ModelState


class Need(Enum):
    """What a live request needs next; also the names of `ModelState`'s files."""

    PREFILL = "waiting"
    DECODE = "decoding"
    PAGE_IN = "away"
    READER = "paused"


class RequestState:
    """One live request."""

    __slots__ = (
        "artifact",
        "deadline_s",
        "deferral_s",
        "first_token_s",
        "grace_s",
        "in_copy",
        "in_step",
        "kv",
        "last_token_s",
        "lead_s",
        "long",
        "model",
        "n_on_time",
        "n_tokens",
        "need",
        "paused_since_s",
        "request",
        "share",
        "shift_s",
        "since_s",
        "to_end",
        "told_phase",
        "told_position",
    )

    def __init__(
        self, arrived: Arrived, model: "ModelState", kv: KvTable, share: Share, cost: CostModel
    ) -> None:
        request, history = arrived.request, arrived.history
        self.request: Request = request
        self.model = model
        self.share = share
        self.kv = kv
        self.n_tokens = request.n_prompt + arrived.n_delivered
        self.shift_s = history.paused_s
        """How far pauses have moved the deadlines back."""
        self.deadline_s = request.deadline_s(arrived.n_delivered) + self.shift_s
        self.lead_s = request.service.ttft_s * (1 - 1 / request.weight)
        """How much earlier than its deadline it is ordered because of its weight: less than a TTFT, so
        that no request starves behind it."""
        self.grace_s = model.shares.grace_s(request)
        """How late it may be before it is deferred."""
        self.deferral_s = model.shares.deferral_s
        """By how much it is deferred then."""
        self.long: LongPrompt | None = None
        """What computing the prompt means for the grace, if that takes longer."""
        long = LongPrompt(cost, model.facts, request, self.grace_s)
        if long.seconds > self.grace_s:
            self.long = long
            self.deferral_s = max(self.deferral_s, DEFERRAL_TTFTS * long.seconds)
        self.paused_since_s: float | None = None
        self.in_step = False
        self.in_copy = False
        self.to_end: tuple[FinishReason | None, str] | None = None
        """How it ended (without a reason: it moves elsewhere). It leaves as soon as no operation in flight
        uses it."""
        self.need = Need.PREFILL
        self.first_token_s = history.first_token_s
        self.last_token_s = history.last_token_s
        self.since_s = history.last_token_s
        """When the wait for the next token began: at its last token, or later by the client's pauses since
        then."""
        self.n_on_time = history.n_on_time
        self.artifact = ArtifactAllowance(*(history.artifact or (request.service.ttft_s,)))
        self.told_phase: RequestPhase | None = None
        self.told_position = 0
        """Number of requests ahead of it, as last told, while it has not run
        (`tokenmux.scheduler.instance.queue`)."""

    @property
    def id(self) -> RequestId:
        return self.request.id

    @property
    def n_drawn(self) -> int:
        return self.n_tokens - self.request.n_prompt

    @property
    def n_computed(self) -> int:
        return self.kv.n_computed

    @property
    def next_cell(self) -> PrefixKey | None:
        prefix = self.kv.prefix
        if prefix is None or not (prefix.reads and prefix.writes):
            return None
        place = self.kv.n_computed // prefix.cell_tokens
        n_readable = (self.request.n_prompt - 1) // prefix.cell_tokens
        return None if place >= n_readable else prefix.keys[place]

    @property
    def due_s(self) -> float:
        shares = self.model.shares
        if shares.even:
            return shares.ordered_s(self.deadline_s, self.lead_s, self.grace_s, self.deferral_s)
        return shares.due_s(self.share, self.deadline_s - self.lead_s)

    @property
    def is_deferred(self) -> bool:
        shares = self.model.shares
        return shares.even and shares.now_s - self.deadline_s > self.grace_s

    @property
    def is_long(self) -> bool:
        return self.long is not None

    @property
    def is_paused(self) -> bool:
        return self.paused_since_s is not None

    @property
    def is_clean(self) -> bool:
        return self.kv.is_clean

    @property
    def device_bytes(self) -> int:
        return (len(self.kv.device) - self.kv.n_missing) * self.kv.shape.block_bytes

    def n_overdue(self, now_s: float) -> int:
        """Tokens that are due by now and not drawn: at most, since it may end before them, or have drawn some
        in the step in flight. None while its client does not read."""
        late_s = now_s - self.deadline_s
        if late_s <= 0 or self.is_paused or self.to_end:
            return 0
        asked = self.request
        return int(min(asked.max_tokens - self.n_drawn, late_s / asked.service.tpot_s + 1))

    def history(self, at_s: float) -> RequestHistory:
        """What the request takes along if it leaves at `at_s`."""
        paused_s = 0.0 if self.paused_since_s is None else at_s - self.paused_since_s
        return RequestHistory(
            self.n_on_time,
            self.first_token_s,
            self.last_token_s,
            self.shift_s + paused_s,
            (self.artifact.allowance_s, self.artifact.late_s),
        )

    def next_need(self) -> Need:
        if self.is_paused:
            return Need.READER
        if not self.kv.on_device:
            return Need.PAGE_IN
        return Need.DECODE if self.n_drawn and self.kv.n_computed == self.n_tokens - 1 else Need.PREFILL

    def set_grace(self) -> None:
        if self.long is not None:
            self.grace_s = self.long.grace_s(self.kv.n_computed)

    def set_deadline(self) -> None:
        self.deadline_s = self.request.deadline_s(self.n_drawn) + self.shift_s
