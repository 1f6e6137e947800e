"""Refuses requests that name another host than this server.

A web page can let its own name point to 127.0.0.1 (DNS rebinding), and its reader's browser then sends what
the page likes to a server without keys. It cannot choose the `host` header: that has the page's name.
Addresses and `localhost` are never a page's name.
"""

import ipaddress
from collections.abc import Iterable
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenmux.server.http_api.http_errors import HttpRefusal
from tokenmux.server.http_api.json_answers import send_error


class HostCheck:
    """An ASGI application that lets requests for known hosts through to another."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        """`names` are known besides addresses and `localhost`."""
        self._app = app
        self._names = frozenset(name.lower().rstrip(".") for name in ("localhost", *names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Request(scope).headers.get("host", "")
        if self._knows(host):
            await self._app(scope, receive, send)
            return
        said = f"{host[:100]!r} is not a name of this server: add it to `http_hosts` of its pool.yaml"
        await send_error(send, HttpRefusal(HTTPStatus.MISDIRECTED_REQUEST, said, {"connection": "close"}))

    def _knows(self, host: str) -> bool:
        name, _, rest = host[1:].partition("]") if host.startswith("[") else (host.partition(":")[0], "", "")
        if rest and not rest.startswith(":"):
            return False
        name = name.lower().rstrip(".")
        return not name or name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
