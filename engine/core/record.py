"""The history of one request: what it brings to an instance, and what is known at its end."""

from dataclasses import dataclass

from tokenmux.core.request import FinishReason, Request


@dataclass(frozen=True, slots=True)
class RequestHistory:
    """What a request brings from the instance that it left, or from the node that broke. Times are in
    seconds on the clock of its arrival.

    `n_on_time` of its tokens were on time, and its deadlines are `paused_s` later than without the pauses of
    its client. `artifact` is its allowance and lateness so far (`ArtifactAllowance`).
    """

    n_on_time: int = 0
    first_token_s: float | None = None
    last_token_s: float | None = None
    paused_s: float = 0.0
    artifact: tuple[float, float] | None = None


NO_HISTORY = RequestHistory()


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """The history of one request. Times are in seconds on the instance's clock. `n_tokens` are those drawn
    here: without what a request brought along that was sent again."""

    request: Request
    reason: FinishReason
    first_token_s: float | None
    end_s: float
    last_token_s: float | None
    n_tokens: int
    n_on_time: int
    artifact_late_s: float = 0.0
    """See `tokenmux.scheduler.metrics.artifact_allowance.ArtifactAllowance`."""

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens, or None for fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.n_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.n_tokens - 1)

    @property
    def is_on_time(self) -> bool:
        """True if all its tokens were on time and it did not fail."""
        return self.n_on_time == self.n_tokens and not self.failed

    @property
    def failed(self) -> bool:
        """True if it ended without being complete, and not by its client's wish."""
        return self.reason in (FinishReason.FAILED, FinishReason.EXPIRED)

    @property
    def artifact_attainment(self) -> float | None:
        """The Aegaeon artifact's figure for one request: the share of its time that was not late. None if
        it drew no token."""
        if self.last_token_s is None:
            return None
        total_s = self.last_token_s - self.request.arrival_s
        return 1 - self.artifact_late_s / total_s if total_s > 0 else 1.0
