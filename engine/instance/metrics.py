"""What an instance counts: tokens on time, waiting, swaps, busy channels. Fed by the instance, read by everyone.

The same counters serve the running engine and the simulator. Tokens are on time when they are there by
`arrival + TTFT + i * TPOT` (`engine.core.request.Request.deadline_s`), later pauses by the client not counted against us.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tokenmux.engine.core.facts import ModelId
from tokenmux.engine.core.plan import Channel
from tokenmux.engine.core.request import FinishReason, Request


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """How one request went; times in seconds on the instance's clock."""

    request: Request
    reason: FinishReason
    first_token_s: float | None
    end_s: float
    last_token_s: float | None
    n_tokens: int
    n_on_time: int
    artifact_late_s: float = 0.0
    """See `ArtifactAllowance`."""

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None for fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.n_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.n_tokens - 1)


class ArtifactAllowance:
    """The lateness that the Aegaeon artifact counts, for comparison only: it flatters.

    Its README: "the percentage of time where TTFT/TPOT requirements are satisfied over total service time". A request has an allowance, TTFT at
    first; each token adds a TPOT to it and takes away its wait. A token that needs longer than the allowance is late by the excess, and then the
    full allowance stands again, so that one who is always late can still score well.
    """

    __slots__ = ("allowance_s", "late_s")

    def __init__(self, allowance_s: float, late_s: float = 0.0) -> None:
        self.allowance_s = allowance_s
        self.late_s = late_s

    def drawn(self, since_s: float, ends_s: tuple[float, ...], tpot_s: float) -> None:
        """Tokens came at `ends_s`; the one before, or the request itself, at `since_s`."""
        self._wait(ends_s[0] - since_s, tpot_s)
        span_s = ends_s[-1] - ends_s[0]
        if span_s <= self.allowance_s:
            self.allowance_s += (len(ends_s) - 1) * tpot_s - span_s
        else:
            for before_s, end_s in pairwise(ends_s):
                self._wait(end_s - before_s, tpot_s)

    def _wait(self, wait_s: float, tpot_s: float) -> None:
        if wait_s > self.allowance_s:
            self.late_s += wait_s - self.allowance_s
        else:
            self.allowance_s -= wait_s
        self.allowance_s += tpot_s


@dataclass(slots=True)
class ModelCounters:
    """Totals of one model since it was registered."""

    n_tokens: int = 0
    n_tokens_on_time: int = 0
    n_prompt_tokens: int = 0
    n_swaps: int = 0
    swap_bytes: int = 0
    swap_s: float = 0.0
    swap_exposed_s: float = 0.0
    compute_s: float = 0.0


class Metrics:
    """Counters of one instance. `on_record`, if given, is told of every request's end."""

    def __init__(self, on_record: Callable[[RequestRecord], None] | None = None) -> None:
        self.models: dict[ModelId, ModelCounters] = {}
        self.busy_s = dict.fromkeys(Channel, 0.0)
        self.copied_bytes = dict.fromkeys(Channel, 0)
        self.n_steps = 0
        self.n_discards = 0
        self.on_record = on_record

    def of(self, model: ModelId) -> ModelCounters:
        return self.models.setdefault(model, ModelCounters())


def count_on_time(first_deadline_s: float, tpot_s: float, ends_s: tuple[float, ...]) -> int:
    """How many of the tokens drawn at `ends_s` were there by `first_deadline_s + i * tpot_s`."""
    if ends_s and ends_s[-1] <= first_deadline_s:
        return len(ends_s)
    return sum(end <= first_deadline_s + i * tpot_s for i, end in enumerate(ends_s))
