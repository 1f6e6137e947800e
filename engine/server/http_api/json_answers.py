"""Answers in one piece: JSON with its length, whether they succeed or fail."""

from collections.abc import Iterable

from starlette.types import Send

from tokenmux.server.http_api.http_errors import error_answer


async def send_json(
    send: Send, document: bytes, headers: Iterable[tuple[bytes, bytes]] = (), status: int = 200
) -> None:
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(document)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": document})


async def send_error(send: Send, error: Exception) -> None:
    """Answer with what the client may know of an error."""
    answer = error_answer(error)
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    await send_json(send, answer.content, headers, answer.status)
