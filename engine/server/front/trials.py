"""Gives the node the suspects of earlier deaths, a few at a time, and waits until they have made progress.

`tokenmux.server.nodes.suspects` decides which requests are suspects and in which groups they are tried;
this module adds the time limits. `tokenmux.server.front.verdicts` acts on a conviction.
"""

import asyncio
from collections.abc import Awaitable, Callable

from tokenmux.core.request import RequestId
from tokenmux.messages.commands import Load
from tokenmux.server.nodes.suspects import Suspects

MAX_DOUBLINGS = 3
"""Limit on how often the time of a trial is doubled."""

Suspected = RequestId | Load
"""What may break a node: a request, or a model that is loaded without one (it is pinned)."""


class Trials:
    """Everything that was given to a node and may have broken it."""

    def __init__(
        self,
        n_deaths: int,
        trial_s: float,
        *,
        may_give: Callable[[], bool],
        give: Callable[[Suspected], None],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """`n_deaths` of nodes make a suspect. `give` sends a subject to the node, if `may_give` says
        that there is one that takes it."""
        self._suspects: Suspects[Suspected] = Suspects(n_deaths)
        self._trial_s = trial_s
        self._may_give = may_give
        self._give = give
        self._sleep = sleep
        self._timer: asyncio.Task[None] | None = None

    @property
    def trying(self) -> bool:
        """True if a subject is held back or on trial."""
        return self._suspects.trying

    def arrive(self, subject: Suspected, *, suspected: bool) -> None:
        """Add a subject: give it to the node now, or when its turn comes. One that is `suspected` is
        tried alone."""
        if self._suspects.arrive(subject, suspected=suspected):
            self._give(subject)
        else:
            self.go_on()

    def sent(self, subject: Suspected, *, first: bool = False) -> None:
        """Note that the node was given it; `first` if it is older than the node: trials wait for it."""
        self._suspects.sent(subject, first=first)

    def holds(self, subject: Suspected) -> bool:
        """True if it must not be given to the node now."""
        return self._suspects.holds(subject)

    def is_unproven(self, subject: Suspected) -> bool:
        """True if the present node has it and has made no progress with it."""
        return self._suspects.is_unproven(subject)

    def progressed(self, subject: Suspected) -> None:
        """The present node made progress with it. Call `go_on` afterwards, if `trying`."""
        self._suspects.progressed(subject)

    def forget(self, subject: Suspected) -> None:
        """Forget a subject that has ended."""
        self._suspects.forget(subject)
        if self.trying:
            self.go_on()

    def spared(self) -> None:
        """The node broke before it had read anything."""
        self._suspects.spared()

    def died(self) -> Suspected | None:
        """The node broke. Returns the guilty subject, if it is known now."""
        return self._suspects.died()

    def go_on(self) -> None:
        """Give the node the next suspects, if the last ones are done."""
        if self._timer is not None and not self._suspects.waited_for:
            self.stop()
        while self._may_give() and (subjects := self._suspects.release()):
            for subject in subjects:
                self._give(subject)
        if self._timer is None and self._suspects.waited_for:
            self._timer = asyncio.create_task(self._end_trial(), name="trial")

    def stop(self) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _end_trial(self) -> None:
        await self._sleep(self._trial_s * 2.0 ** min(self._suspects.n_hurried, MAX_DOUBLINGS))
        self._timer = None
        self._suspects.hurry()
        self.go_on()
