"""Answers in one piece, with their length: JSON mostly, whether they succeed or fail."""

from collections.abc import Iterable

from starlette.types import Send

from tokenmux.server.http_api.http_errors import error_answer


async def send_json(
    send: Send, document: bytes, headers: Iterable[tuple[bytes, bytes]] = (), status: int = 200
) -> None:
    await send_whole(send, "application/json", document, headers, status)


async def send_whole(
    send: Send,
    content_type: str,
    document: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    status: int = 200,
) -> None:
    """Send a document of any type."""
    all_headers = [
        (b"content-type", content_type.encode()),
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
