"""Assembles the gRPC server (services, health, reflection, interceptors, transport) and runs it, with the
HTTP server beside it, until told to stop.

What lies behind the front (node, catalogue) is passed in, so that tests run the same server over scripted
parts.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import FrameType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tokenmux.server.front.front import Front
from tokenmux.server.grpc_api.all_services import add_services
from tokenmux.server.grpc_api.health import HealthService
from tokenmux.server.grpc_api.key_interceptor import KeyInterceptor
from tokenmux.server.grpc_api.malformed import GRPC_LIMIT_TIMES, MalformedInterceptor
from tokenmux.server.http_api.http_server import HttpServer, HttpTransport
from tokenmux.server.http_api.metrics_app import metrics_app
from tokenmux.server.http_api.openai_app import openai_app
from tokenmux.server.listening import Reservation, cannot_listen
from tokenmux.server.stopping import LastResort

logger = logging.getLogger(__name__)

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

CLOSING_S = 3.0
"""How long calls may take to end at the very end. Watchers take all of it; generations have been told that
they end, but on a busy machine their answer was still on its way after a second, and gRPC's CANCELLED came
first."""


@dataclass(frozen=True, slots=True)
class Transport:
    """How the server is reached. `certificate` and `private_key` are PEM; give both or neither."""

    address: str = "127.0.0.1:0"
    certificate: bytes | None = None
    private_key: bytes | None = None
    max_message_bytes: int = 4 << 20
    max_calls_per_connection: int = 10_000
    """Further calls wait in their client until one of the others has ended."""
    keepalive_s: float = 30.0
    """A connection that is silent for this long is checked; if it is dead, its calls are cancelled."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    port: int
    front: Front
    http_port: int | None = None
    metrics_port: int | None = None


@asynccontextmanager
async def running(
    front: Front,
    transport: Transport,
    http: HttpTransport | None = None,
    metrics: HttpTransport | None = None,
) -> AsyncIterator[Running]:
    """Start the front and the servers around it; stop all on leaving. Figures for Prometheus are at the
    address of `metrics`, or else at that of `http`. Raises ConfigError if an address cannot be used.

    Ports are taken before anything slow begins, and answer only when the front is ready.
    """
    health = HealthService(front)
    server = _server(front, transport, health)
    http_server: HttpServer | None = None
    metrics_server: HttpServer | None = None
    try:
        port = _bind(server, transport)
        if http is not None:
            app = openai_app(front, http.max_body_bytes, metrics=metrics is None)
            http_server = HttpServer(app, http, Reservation(http.address, "http").handed_over())
        if metrics is not None:
            listening = Reservation(metrics.address, "metrics").handed_over()
            metrics_server = HttpServer(metrics_app(front), metrics, listening, "metrics")
        await front.start()
        await server.start()
        for other in (http_server, metrics_server):
            if other is not None:
                await other.start()
        try:
            yield Running(
                port,
                front,
                None if http_server is None else http_server.port,
                None if metrics_server is None else metrics_server.port,
            )
        finally:
            health.stop()
    finally:
        # first: clients should get the real reason, not gRPC's for the calls that it cancels
        front.end_streams()
        stops = [server.stop(CLOSING_S)]
        stops += [other.stop(CLOSING_S) for other in (http_server, metrics_server) if other is not None]
        await asyncio.gather(*stops)
        await front.close()


async def until_signalled(front: Front, drain_s: float, last_resort: LastResort | None = None) -> None:
    """Wait for SIGTERM or SIGINT, then at most `drain_s` for live requests to complete. A second signal ends
    that wait.

    `last_resort` notices signals even while this loop hangs.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    n_signals = 0

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal n_signals
        n_signals += 1
        if last_resort is not None:
            (last_resort.draining if n_signals == 1 else last_resort.hurrying)()
        loop.call_soon_threadsafe(signalled)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        await stop.wait()
        logger.info("draining: %d live requests, at most %g s", front.n_live, drain_s)
        drained, hurried = asyncio.ensure_future(front.drain()), asyncio.ensure_future(hurry.wait())
        await asyncio.wait((drained, hurried), timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, hurried):
            task.cancel()
        await asyncio.gather(drained, hurried, return_exceptions=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _server(
    front: Front,
    transport: Transport,
    health: HealthService,
) -> grpc.aio.Server:
    milliseconds = int(transport.keepalive_s * 1000)
    server = grpc.aio.server(
        interceptors=[KeyInterceptor(front.keys), MalformedInterceptor(transport.max_message_bytes)],
        options=[
            # Otherwise a second server on the same port would silently take half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", GRPC_LIMIT_TIMES * transport.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Calls that arrive faster than the loop takes them wait for it. By default grpc ends those over
            # 1,000 as CANCELLED, a status that no client retries; the front itself refuses what is too much,
            # with a reason.
            ("grpc.server.max_pending_requests", 100_000),
            ("grpc.server.max_pending_requests_hard_limit", 200_000),
            ("grpc.max_concurrent_streams", transport.max_calls_per_connection),
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", milliseconds),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", milliseconds // 3),
        ],
    )
    names = add_services(server, front)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((*names, _HEALTH, reflection.SERVICE_NAME), server)
    return server


def _bind(server: grpc.aio.Server, transport: Transport) -> int:
    try:
        if transport.certificate is None or transport.private_key is None:
            port = server.add_insecure_port(transport.address)
        else:
            credentials = grpc.ssl_server_credentials([(transport.private_key, transport.certificate)])
            port = server.add_secure_port(transport.address, credentials)
    except RuntimeError as error:
        raise cannot_listen(transport.address) from error
    if port == 0:
        raise cannot_listen(transport.address)
    return port
