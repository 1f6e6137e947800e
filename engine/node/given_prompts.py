"""Counts what the prefix cache saved a request: tokens of its prompt for which no step was started.

That is the same whether the request moved, lost KV or took KV that it had computed itself: what was computed
for it once was not given to it.
"""

from tokenmux.core.plan import Step
from tokenmux.core.request import Request, RequestId


class GivenPrompts:
    """Requests that may be given KV, until they have their first token."""

    def __init__(self) -> None:
        self._computed: dict[RequestId, int] = {}
        """For each request the positions that steps computed, as bits."""

    def __len__(self) -> int:
        return len(self._computed)

    def arrived(self, request: Request) -> None:
        if request.prefix is not None and request.prefix.reads:
            self._computed[request.id] = 0

    def started(self, step: Step) -> None:
        if not self._computed:
            return
        for chunk in step.chunks:
            if chunk.request in self._computed:
                self._computed[chunk.request] |= ((1 << chunk.n_tokens) - 1) << chunk.start

    def taken(self, request: RequestId, n_prompt: int) -> int:
        """The number of tokens of its prompt of `n_prompt` tokens that a request was given, when it draws its
        first token or ends without one; 0 afterwards."""
        computed = self._computed.pop(request, None)
        if computed is None:
            return 0
        return n_prompt - (computed & ((1 << n_prompt) - 1)).bit_count()
