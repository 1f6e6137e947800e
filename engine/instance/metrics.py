"""What an instance counts: tokens on time, waiting, swaps, busy channels. Fed by the instance, read by everyone.

The same counters serve the running engine and the simulator. Tokens are on time when they are there by
`arrival + TTFT + i * TPOT` (`engine.core.request.Request.deadline_s`), later pauses by the client not counted against us.
"""

from collections.abc import Callable
from dataclasses import dataclass

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

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; None for fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.n_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.n_tokens - 1)


@dataclass(slots=True)
class ModelCounters:
    """Totals of one model since it was registered."""

    n_finished: int = 0
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
