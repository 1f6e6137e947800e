"""Who comes first among the late: how much of the instance each tenant has had, and how late its requests may
therefore look.

While everybody can be on time, deadlines alone decide. Under overload they would serve whoever has the
longest backlog: its requests are the latest. So the lateness of a tenant that has had more than the least
served one counts less, and the less the more it is ahead:

    due as ordered = now - lateness / (1 + ahead / quantum)^2
    ahead          = seconds had per weight - those of the least served tenant

An order by deadline within a tenant stays one. A tenant within its share waits for a few quanta beyond its
deadline, however long the backlog of others. A tenant that comes back owes what it owed and has saved nothing
(as in the Virtual Token Counter: Sheng et al., OSDI 2024).
"""

from math import inf

from tokenmux.core.request import Request

QUANTUM_TTFTS = 0.1
"""Of the pool's own TTFT, whatever requests ask for: else a tenant could choose how much its share may be
exceeded. A second at the paper's 10 s: about a load and a burst, below which taking turns would cost more
than it gives."""


class Share:
    """One tenant's account."""

    __slots__ = ("had_s", "n_wanting", "patience", "weight")

    def __init__(self) -> None:
        self.had_s = 0.0
        """Seconds of the instance, divided by its weight."""
        self.n_wanting = 0
        """Its requests that want tokens."""
        self.weight = 1.0
        self.patience = 1.0
        """What its lateness is multiplied by."""


class Shares:
    """The accounts of all tenants that want something, or that are ahead of those who do."""

    def __init__(self, ttft_s: float = 10.0) -> None:
        """`ttft_s`: the pool's own TTFT."""
        self.quantum_s = QUANTUM_TTFTS * ttft_s
        self.now_s = -inf
        self.even = True
        """Whether nobody is ahead: deadlines are what they are."""
        self._shares: dict[str, Share] = {}

    def enter(self, request: Request) -> Share:
        """The request begins to want tokens, or wants them again."""
        share = self._shares.setdefault(request.tenant, Share())
        share.weight = request.tenant_weight
        if not share.n_wanting:
            least_s = min((other.had_s for other in self._shares.values() if other.n_wanting), default=0.0)
            share.had_s = max(share.had_s, least_s)
            share.n_wanting = 1
            self.settle()
        else:
            share.n_wanting += 1
        return share

    def leave(self, share: Share) -> None:
        """One of its requests no longer wants tokens."""
        share.n_wanting -= 1
        if not share.n_wanting:
            self.settle()

    def settle(self) -> None:
        """Compare the accounts. To be called after charging them."""
        if len(self._shares) < 2:
            self.even = True
            return
        wanting = [share for share in self._shares.values() if share.n_wanting]
        self.even = len(wanting) < 2
        least_s = min((share.had_s for share in wanting), default=inf)
        self._shares = {name: s for name, s in self._shares.items() if s.n_wanting or s.had_s > least_s}
        for share in wanting:
            share.patience = (1 + (share.had_s - least_s) / self.quantum_s) ** -2

    def due_s(self, share: Share, deadline_s: float) -> float:
        """The deadline of one of its requests, as it is ordered."""
        late_s = self.now_s - deadline_s
        return deadline_s if late_s <= 0 else self.now_s - late_s * share.patience

    def earliest_s(self, deadlines: dict[Share, float]) -> float:
        """Of each tenant's earliest deadline, the earliest as they are ordered. Asked more often than all
        else: a plain loop."""
        now_s, earliest_s = self.now_s, inf
        for share, deadline_s in deadlines.items():
            due_s = deadline_s if deadline_s >= now_s else now_s - (now_s - deadline_s) * share.patience
            if due_s < earliest_s:  # noqa: PLR1730 - min() takes twice as long
                earliest_s = due_s
        return earliest_s
