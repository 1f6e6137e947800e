"""The calls of clients: each is admitted, becomes a live request, and ends with its stream, or earlier: when
its client leaves, when its time is over, or when it is cancelled by its id."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from math import inf

from tokenmux.core.request import DEFAULT_TENANT
from tokenmux.server.front.admission import Admission, Admitted
from tokenmux.server.front.api_keys import Key, cancelling_tenant, tenant_of
from tokenmux.server.front.call import Call
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.generation import Ask
from tokenmux.server.front.live_requests import LiveRequests
from tokenmux.server.front.readiness import Readiness
from tokenmux.server.front.request_counters import RequestCounters
from tokenmux.server.front.request_names import NamedRequest, RequestNames


class Calls:
    """All calls that have not ended; see the module."""

    def __init__(
        self,
        admission: Admission,
        requests: LiveRequests,
        readiness: Readiness,
        counters: RequestCounters,
        changes: Changes,
        clock: Callable[[], float],
    ) -> None:
        self.n_open = 0
        """Calls whose clients have not everything they asked for."""
        self._admission = admission
        self._requests = requests
        self._readiness = readiness
        self._counters = counters
        self._changes = changes
        self._clock = clock
        self._names = RequestNames()

    @asynccontextmanager
    async def open(self, ask: Ask, caller: Key | None) -> AsyncIterator[Call]:
        """As `tokenmux.server.front.service.FrontService.open`."""
        ask = replace(
            ask,
            tenant=tenant_of(caller, ask.tenant) or DEFAULT_TENANT,
            request_id=ask.request_id or secrets.token_hex(8),
        )
        with ExitStack() as held:
            with self._counters.refusing():
                named = held.enter_context(self._names.hold(ask.tenant, ask.request_id))
                admitted = await self._admitted(ask, named)
            named.call = call = self._requests.add(
                admitted.choices,
                admitted.info,
                suspected=admitted.served.n_convicted > 0,
                echo=admitted.echo,
                includes_stop=admitted.includes_stop,
            )
            self.n_open += 1
            try:
                with self._expiring(call):
                    yield call
            finally:
                self.n_open -= 1
                if self._readiness.draining:
                    self._changes.notify()
                self._requests.leave(call)

    def cancel(self, request_id: str, caller: Key | None, tenant: str) -> None:
        """As `tokenmux.server.front.service.FrontService.cancel`."""
        for named in self._names.find(request_id, cancelling_tenant(caller, tenant)):
            if named.call is None:
                named.cancel_admission()
            else:
                self._requests.cancel(named.call)

    async def _admitted(self, ask: Ask, named: NamedRequest) -> Admitted:
        """Admit a request, unless its time is over before that, or it is cancelled."""
        try:
            async with asyncio.timeout(ask.timeout_s) as named.admission:
                return await self._admission.admit(ask)
        except TimeoutError:
            raise named.why_not_admitted() from None

    @contextmanager
    def _expiring(self, call: Call) -> Iterator[None]:
        """End the request when its client's time is over. The node does so as well, if it is there."""
        left_s = call.choices[0].request.expires_s - self._clock()
        if left_s == inf:
            yield
            return
        timer = asyncio.get_running_loop().call_later(left_s, self._requests.expire, call)
        try:
            yield
        finally:
            timer.cancel()
