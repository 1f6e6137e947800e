"""How late a request with a long prompt may be before it is deferred (`tokenmux.scheduler.metrics.shares`).

    arrival ──────────── deadline ──── grace ──▶        a short prompt is deferred when its grace is over
    arrival ── latest begin ─────── prompt ────▶        a long one when it can no longer end by then

Otherwise a prompt that takes longer than a TTFT would always be deferred halfway, and what was computed of it
would lie around while the next one is begun, with the same end.
"""

from tokenmux.core.cost import CostModel, prefill_work
from tokenmux.core.facts import ModelFacts
from tokenmux.core.request import Request


class LongPrompt:
    """The prompt of one request, if computing it alone takes longer than its grace."""

    __slots__ = ("_cost", "_grace_s", "_model", "_n_prompt", "seconds")

    def __init__(self, cost: CostModel, model: ModelFacts, request: Request, grace_s: float) -> None:
        """`grace_s` is what the request would have with a short prompt."""
        self._cost, self._model, self._n_prompt = cost, model, request.n_prompt
        self.seconds = self._left_s(0)
        """Estimated time to compute all of it."""
        self._grace_s = grace_s + max(0.0, self.seconds - request.service.ttft_s)

    def grace_s(self, n_computed: int) -> float:
        """How late it may be once `n_computed` tokens are computed: less by what is left, and more by what
        would be lost. It may be negative: then it is deferred before it is late."""
        left_s = self._left_s(n_computed)
        return self._grace_s - left_s + (self.seconds - left_s)

    def _left_s(self, n_computed: int) -> float:
        n_left = self._n_prompt - n_computed
        return self._cost.step_s(self._model, prefill_work(n_computed, n_left)) if n_left > 0 else 0.0
