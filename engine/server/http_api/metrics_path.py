"""`GET /metrics`: the figures for Prometheus, as a path of the dialect's server or alone at an address of
its own.

It tells what all tenants do, so that a developer's key does not open it: if there are keys, it needs one for
metrics, or an administrator's.
"""

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.json_answers import send_whole
from tokenmux.server.observability.exposition import Exposition, format_for

METRICS = "/metrics"


class MetricsPath:
    """Answers with the figures, in the format that is asked for."""

    def __init__(self, front: FrontService) -> None:
        self._exposition = Exposition(front.totals)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        form = format_for(Request(scope).headers.get("accept", ""))
        await send_whole(send, form.value, await self._exposition.text(form))
