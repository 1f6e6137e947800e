"""`POST /v1/completions/ID/cancel` and `POST /v1/chat/completions/ID/cancel`, named as OpenAI names the same
for its responses."""

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tokenmux.core.errors import UnknownRequest
from tokenmux.server.front.api_keys import AUTHORIZATION
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.json_answers import send_json


class CancelledBody(BaseModel):
    """A request that is being ended; its own answer is an error."""

    id: str
    status: str


class Cancellations:
    """One of the two paths, as an ASGI application. `id_prefix` is what answers put before their ids; it may
    be left out, as in the header `x-request-id`."""

    def __init__(self, front: FrontService, id_prefix: str) -> None:
        self._front = front
        self._id_prefix = id_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = self._front.keys.caller(Request(scope).headers.get(AUTHORIZATION))
        said = scope["path_params"]["id"]
        try:
            self._front.cancel(said, caller)
        except UnknownRequest:
            if not said.startswith(self._id_prefix):
                raise
            self._front.cancel(said.removeprefix(self._id_prefix), caller)
        await send_json(send, CancelledBody(id=said, status="cancelled").model_dump_json().encode())
