"""Reads the body of a request, within limits on its size, its type and the time that it takes."""

import asyncio
from http import HTTPStatus

from starlette.requests import Request

from tokenmux.server.http_api.client_presence import ClientLeft
from tokenmux.server.http_api.http_errors import HttpRefusal

BODY_S = 60.0
"""How long the body may take to arrive once its headers have."""
_CLOSE = {"connection": "close"}
"""What is left of the body is not read."""


async def read_json_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises HttpRefusal if it is not JSON by its type, compressed, too large or too slow;
    ClientLeft."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpRefusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the content type is {kind[:100]!r}: send JSON, with `content-type: application/json`",
            _CLOSE,
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        said = f"the content encoding is {encoding[:100]!r}: send the body as it is, not compressed"
        raise HttpRefusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, said, _CLOSE)
    said = request.headers.get("content-length", "")
    if said.isdecimal() and (len(said) > 18 or int(said) > max_bytes):
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        said = f"the body did not arrive within {BODY_S:g} s: send it at once"
        raise HttpRefusal(HTTPStatus.REQUEST_TIMEOUT, said, _CLOSE) from None


def _too_large(max_bytes: int) -> HttpRefusal:
    return HttpRefusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has more than {max_bytes} bytes: shorten it, or raise `max_message` in the server's "
        "pool.yaml",
        _CLOSE,
    )
