"""The ids under which clients know their requests, to cancel them: a tenant has one live request for each.

Nodes know requests by ids that are never used twice, so that a client may use its own again as soon as its
call has ended, and tenants need not agree.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tokenmux.core.errors import AlreadyExists, TokenmuxError, UnknownRequest
from tokenmux.server.front.call import Call
from tokenmux.server.front.ends import cancelled_by_id, out_of_time


@dataclass(slots=True, eq=False)
class NamedRequest:
    """A request from its arrival to the end of its call. `admission` bounds the time before it is live."""

    tenant: str
    request_id: str
    admission: asyncio.Timeout | None = None
    call: Call | None = None
    cancelled: bool = False

    def cancel_admission(self) -> None:
        """End it while it is being admitted."""
        self.cancelled = True
        if self.admission is not None:
            self.admission.reschedule(asyncio.get_running_loop().time())

    def why_not_admitted(self) -> TokenmuxError:
        """Why its admission was stopped."""
        return cancelled_by_id(self.request_id) if self.cancelled else out_of_time(self.request_id, 0)


class RequestNames:
    """All requests whose calls have not ended."""

    def __init__(self) -> None:
        self._named: dict[str, dict[str, NamedRequest]] = {}
        """By id and tenant."""

    @contextmanager
    def hold(self, tenant: str, request_id: str) -> Iterator[NamedRequest]:
        """Hold an id while its call lasts. Raises AlreadyExists if the tenant has a live request with it."""
        tenants = self._named.setdefault(request_id, {})
        if tenant in tenants:
            raise AlreadyExists(
                f"request_id {request_id} belongs to a request that is live: choose another, or wait for its "
                "end"
            )
        named = tenants[tenant] = NamedRequest(tenant, request_id)
        try:
            yield named
        finally:
            del tenants[tenant]
            if not tenants and self._named.get(request_id) is tenants:
                del self._named[request_id]

    def find(self, request_id: str, tenant: str | None) -> list[NamedRequest]:
        """The live requests with that id: those of one tenant, or (None) of all. Raises UnknownRequest."""
        tenants = self._named.get(request_id, {})
        found = [named for owner, named in tenants.items() if tenant in (None, owner)]
        if not found:
            raise UnknownRequest(f"there is no live request {request_id[:128]!r} of yours")
        return found
