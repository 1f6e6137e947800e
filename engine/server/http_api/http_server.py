"""Serves an application on a port: uvicorn in the front's event loop, with limits on what clients may hold.

uvicorn bounds neither headers (with its fast parser), nor the time that they take, nor connections that say
nothing; `BoundedConnection` does. A connection whose client takes no data is ended by the system
(TCP_USER_TIMEOUT), some time after the front has ended its request.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tokenmux.core.addresses import is_loopback
from tokenmux.core.errors import Overloaded
from tokenmux.server.http_api.host_check import HostCheck
from tokenmux.server.http_api.http_errors import ErrorAnswer, HttpRefusal, error_answer

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 << 10
HEADERS_S = 30.0
"""How long a new connection may take to send the headers of its request."""
IDLE_S = 75
"""How long a connection may stay open between two requests: longer than the clients and proxies that use it
again, so that none sends a request into a connection that is being closed."""
SPARE_UNREAD_S = 30.0
MAX_CONNECTIONS = 4096
DEAD_S = 30
"""A connection that is silent for this long is checked."""


@dataclass(frozen=True, slots=True)
class HttpTransport:
    """How an application is reached."""

    address: str = "127.0.0.1:0"
    tls: ssl.SSLContext | None = None
    hosts: Sequence[str] = ()
    """Names by which clients may call the server, besides its addresses; on loopback, no other is served."""
    max_body_bytes: int = 4 << 20
    max_connections: int = MAX_CONNECTIONS
    unread_s: float = 60.0
    """How long the front lets a client read nothing."""

    def url(self, port: int | None) -> str:
        """Where it is reached; `port` is the one that was taken, if the address left it open."""
        scheme, host = "http" if self.tls is None else "https", self.address.rpartition(":")[0]
        return f"{scheme}://{host}:{port}"


class BoundedConnection(HttpToolsProtocol):
    """A connection with limits; see the module."""

    max_connections = MAX_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._in_headers = True
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            said = f"{self.max_connections} connections are open already: try again in a few seconds"
            self._refuse(error_answer(Overloaded(said)))
        else:
            self._late = self.loop.call_later(HEADERS_S, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not self._in_headers:
            self._header_bytes = 0
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            said = f"the headers have more than {MAX_HEADER_BYTES} bytes: shorten them"
            self._refuse(error_answer(HttpRefusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, said)))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        if self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self._too_late)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        said = "this is not HTTP/1.1, or not valid"
        self._refuse(error_answer(HttpRefusal(HTTPStatus.BAD_REQUEST, said)))

    def _too_late(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            said = f"no request came within {HEADERS_S:g} s"
            self._refuse(error_answer(HttpRefusal(HTTPStatus.REQUEST_TIMEOUT, said)))

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, answer: ErrorAnswer) -> None:
        """Answer without a request, and close."""
        lines = [
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
            "content-type: application/json",
            f"content-length: {len(answer.content)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        self._stop_waiting()
        if not self._answering():  # in the middle of an answer these lines would be taken for a part of it
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + answer.content)
        self.transport.close()

    def _answering(self) -> bool:
        """True if an answer has begun and not ended, to this request or to one before it."""
        if self.pipeline:
            return True
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete


class HttpServer:
    """Holds its port from the start, answers between `start` and `stop`."""

    def __init__(
        self, app: ASGIApp, transport: HttpTransport, sockets: Sequence[socket.socket], name: str = "http"
    ) -> None:
        """`sockets` listen on the address already; connections wait there until `start`. `name` is for
        those who look at tasks."""
        self._sockets = list(sockets)
        self.port: int = self._sockets[0].getsockname()[1]
        for listening in self._sockets:
            _end_dead_connections(listening, transport.unread_s + SPARE_UNREAD_S)
        connection = type("Connection", (BoundedConnection,), {"max_connections": transport.max_connections})
        self._name = name
        if transport.hosts or is_loopback(transport.address):
            app = HostCheck(app, transport.hosts)
        config = uvicorn.Config(
            app,
            http=connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_S,
        )
        config.load()
        config.ssl = transport.tls
        self._server = _InLoop(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._serving = asyncio.create_task(self._server.serve(self._sockets), name=self._name)
        begun = asyncio.ensure_future(self._server.begun.wait())
        await asyncio.wait((begun, self._serving), return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if self._serving.done():
            self._serving.result()

    async def stop(self, patience_s: float) -> None:
        """Take no more connections; those that have not ended within `patience_s` are cut off."""
        self._server.should_exit = True
        if self._serving is not None:
            _, pending = await asyncio.wait({self._serving}, timeout=patience_s)
            for task in (*pending, *self._server.server_state.tasks):
                task.cancel()
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.gather(self._serving, *self._server.server_state.tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()


class _InLoop(uvicorn.Server):
    """Leaves signals to the server that it is a part of, and tells when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _end_dead_connections(listening: socket.socket, unread_s: float) -> None:
    """Connections inherit this from the socket that accepts them."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_S)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_S)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * unread_s))
