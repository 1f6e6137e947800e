"""What paths of HTTP have in common: who may use them, and how errors are answered."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenmux.server.front.api_keys import AUTHORIZATION
from tokenmux.server.front.api_keys import Scope as KeyScope
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.client_presence import ClientLeft
from tokenmux.server.http_api.http_errors import HttpRefusal
from tokenmux.server.http_api.json_answers import send_error


class Answering:
    """Runs one path; an exception becomes the answer that fits."""

    def __init__(self, path: ASGIApp, front: FrontService, *, needs: KeyScope | None) -> None:
        """The caller's key must open `needs`; None: the path is open to all."""
        self._path = path
        self._front = front
        self._needs = needs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._needs is not None:
                header = Request(scope).headers.get(AUTHORIZATION)
                self._front.keys.check(header, self._needs, scope["path"])
            await self._path(scope, receive, send)
        except ClientLeft:
            pass
        except Exception as error:  # noqa: BLE001 - the one place that turns errors into answers
            await send_error(send, error)


def refused_paths(said: str, others: Mapping[str, str] | None = None) -> dict[Any, Any]:
    """What answers unknown paths and methods: with `said`, or what `others` has for that path."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            told = f"{request.method} is not a method of this path"
        else:
            told = (others or {}).get(request.url.path, said)
        return _Refusal(HttpRefusal(status, told, error.headers))

    return {HTTPException: refused}


class _Refusal(Response):
    def __init__(self, refusal: HttpRefusal) -> None:
        super().__init__()
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(send, self._refusal)
