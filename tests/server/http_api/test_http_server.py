"""The port itself: who holds it, what it bounds, TLS, and how it ends."""

import asyncio
import json
import socket

import httpx
import pytest

from tests.server.harness import serving
from tests.server.http_api.http_calls import TEXT
from tokenmux.core.errors import ConfigError
from tokenmux.server.http_api import http_server
from tokenmux.server.http_api.http_server import HttpTransport
from tokenmux.server.listening import Reservation


async def raw(port: int | None, data: bytes) -> bytes:
    """What a server says to these bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_a_port_that_is_taken_is_said_before_anything_slow() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"the port is in use.*\(--http\)"):
            Reservation(address, "http")
        with pytest.raises(ConfigError, match="the port is in use"):
            async with serving(http=HttpTransport(address)):
                pass


@pytest.mark.parametrize("data", [b"hello\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"\x16\x03\x01"])
async def test_what_is_not_http(data: bytes) -> None:
    async with serving(http=HttpTransport()) as served:
        said = await raw(served.http_port, data)
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"invalid_request_error" in said


async def test_headers_are_bounded() -> None:
    async with serving(http=HttpTransport()) as served:
        said = await raw(served.http_port, b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 12_000)
        assert said.startswith(b"HTTP/1.1 431 ")


async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEADERS_S", 0.1)
    async with serving(http=HttpTransport()) as served:
        for data in (b"", b"GET /hea"):
            assert (await raw(served.http_port, data)).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmux.server.http_api.body_reader.BODY_S", 0.1)
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    )
    async with serving(http=HttpTransport()) as served:
        assert (await raw(served.http_port, head)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("second", [b"\x00\r\n\r\n", b"GET /hea"])
async def test_a_bad_request_after_another_does_not_come_into_its_answer(
    monkeypatch: pytest.MonkeyPatch, second: bytes
) -> None:
    monkeypatch.setattr(http_server, "HEADERS_S", 0.1)
    body = json.dumps({**TEXT, "stream": True}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    async with serving(http=HttpTransport(), auto=False) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.http_port)
        writer.write(head + body)
        begun = await reader.readuntil(b"transfer-encoding: chunked\r\n\r\n")
        writer.write(second)
        rest = await asyncio.wait_for(reader.read(), 5)
        assert begun.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1" not in rest
        writer.close()


async def test_connections_are_bounded() -> None:
    async with serving(http=HttpTransport(max_connections=2)) as served:
        held = [await asyncio.open_connection("127.0.0.1", served.http_port) for _ in range(2)]
        said = await raw(served.http_port, b"")
        assert said.startswith(b"HTTP/1.1 429 ")
        assert b"x-should-retry: true" in said
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        async with httpx.AsyncClient(timeout=60) as client:
            assert (await client.get(f"http://127.0.0.1:{served.http_port}/health")).status_code == 200


async def test_a_stop_does_not_wait_for_idle_connections() -> None:
    async with serving(http=HttpTransport()) as served:
        client = httpx.AsyncClient(timeout=60)
        assert (await client.get(f"http://127.0.0.1:{served.http_port}/health")).status_code == 200
        clock = asyncio.get_running_loop().time
        begin_s = clock()
    assert clock() - begin_s < 5
    await client.aclose()


def test_connections_inherit_that_they_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        http_server._end_dead_connections(listening, 90)
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 90_000
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
