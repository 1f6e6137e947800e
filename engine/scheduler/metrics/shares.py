"""The order among late requests: how much of the instance each tenant has had, and how late its requests may
therefore look.

As long as every request can be on time, deadlines alone decide. Under overload, deadlines would favour the
tenant with the longest backlog, whose requests are the latest. So the lateness of a tenant that has had more
than the least served one is reduced, the more the further it is ahead:

    due as ordered = now - lateness / (1 + ahead / quantum)^2
    ahead          = seconds had per weight - those of the least served tenant

The order by deadline within a tenant stays. A tenant within its share waits for a few quanta beyond its
deadline, however long the backlog of others. A tenant that comes back still owes what it owed, and has saved
nothing (as in the Virtual Token Counter: Sheng et al., OSDI 2024).

While only one tenant wants something, what is late by more than a little goes behind what can still be on
time, as if it were due later by a fixed time (`GRACE_TTFTS`, `DEFERRAL_TTFTS`; those of long prompts are in
`tokenmux.scheduler.instance.long_prompt`). Otherwise one late request
makes the next one late, and under overload all are. The time is fixed, so waiting stays bounded; a request
that has caught up is ordered by its deadline again.
"""

from math import inf

from tokenmux.core.request import Request

QUANTUM_TTFTS = 0.1
"""In TTFTs of the pool, whatever requests ask for: otherwise a tenant could choose by how much its share
may be exceeded. A second at the paper's 10 s: about one load and one burst, below which taking turns would
cost more than it gains."""


GRACE_TTFTS = 0.3
"""A request that is late by more than this many TTFTs, its own or the pool's if that is longer, is deferred.
With 0.1 a point is lost at the targets, since most of those that are late by a second catch up; 0.3 and 0.5
lose nothing there. Strict requests that are late catch up among patient ones: with their own TTFT alone, two
worlds of mixed classes lost 2 and 7 points."""

DEFERRAL_TTFTS = 10.0
"""How much later a deferred request counts as due, in TTFTs of the pool, or in times of computing its prompt
if that takes longer."""


class Share:
    """One tenant's account."""

    __slots__ = ("had_s", "n_wanting", "patience", "weight")

    def __init__(self) -> None:
        self.had_s = 0.0
        """Seconds of the instance that it has had, divided by its weight."""
        self.n_wanting = 0
        """Number of its requests that want tokens."""
        self.weight = 1.0
        self.patience = 1.0
        """Factor on its lateness."""


class Shares:
    """The accounts of all tenants that want something, or that are ahead of those who do."""

    def __init__(self, ttft_s: float = 10.0) -> None:
        """`ttft_s` is the pool's own TTFT."""
        self.quantum_s = QUANTUM_TTFTS * ttft_s
        self.deferral_s = DEFERRAL_TTFTS * ttft_s
        self._ttft_s = ttft_s
        self.now_s = -inf
        self.even = True
        """True if no tenant is ahead: deadlines count then, and what is late is deferred."""
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
        """One of the tenant's requests no longer wants tokens."""
        share.n_wanting -= 1
        if not share.n_wanting:
            self.settle()

    def settle(self) -> None:
        """Compare the accounts. Call it after charging them."""
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
        """The deadline by which one of the tenant's requests is ordered."""
        late_s = self.now_s - deadline_s
        return deadline_s if late_s <= 0 else self.now_s - late_s * share.patience

    def grace_s(self, request: Request) -> float:
        """How late the request may be before it is deferred."""
        return GRACE_TTFTS * max(request.service.ttft_s, self._ttft_s)

    def ordered_s(self, deadline_s: float, lead_s: float, grace_s: float, deferral_s: float) -> float:
        """The deadline by which a request is ordered while no tenant is ahead: brought forward by its
        `lead_s`, and later by its `deferral_s` if it is late by more than its `grace_s`."""
        due_s = deadline_s - lead_s
        return due_s if self.now_s - deadline_s <= grace_s else due_s + deferral_s

    def earliest_s(self, deadlines: dict[Share, float]) -> float:
        """The earliest of the tenants' earliest deadlines, as they are ordered. Called more often than
        anything else, so it is a plain loop."""
        now_s, earliest_s = self.now_s, inf
        for share, deadline_s in deadlines.items():
            due_s = deadline_s if deadline_s >= now_s else now_s - (now_s - deadline_s) * share.patience
            if due_s < earliest_s:  # noqa: PLR1730 - min() takes twice as long
                earliest_s = due_s
        return earliest_s
