"""All paths of the dialect as one ASGI application. What each needs, a key or nothing, is listed here.

POST /v1/completions         GET /v1/models         GET /health          open to all, as the health
POST /v1/chat/completions    GET /v1/models/NAME    GET /ready           service of gRPC is
POST each of them/ID/cancel  GET /v2/...            GET /openapi.json
POST /v1/embeddings                                 GET /v2/health/...
"""

import time
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenmux.core.errors import NotServable, Unavailable
from tokenmux.server.front.api_keys import AUTHORIZATION
from tokenmux.server.front.api_keys import Scope as KeyScope
from tokenmux.server.front.service import FrontService
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.http_api.answer_bodies import ModelBody, ModelListBody
from tokenmux.server.http_api.answer_forms import ChatForm, TextForm
from tokenmux.server.http_api.cancellations import Cancellations
from tokenmux.server.http_api.client_presence import ClientLeft
from tokenmux.server.http_api.embedding_path import EmbeddingPath
from tokenmux.server.http_api.generations import Generations
from tokenmux.server.http_api.http_errors import HttpRefusal
from tokenmux.server.http_api.json_answers import send_error, send_json
from tokenmux.server.http_api.open_inference_paths import OpenInferencePaths
from tokenmux.server.http_api.openapi_document import openapi_document
from tokenmux.server.http_api.request_bodies import ChatBody, CompletionBody

OWNER = "tokenmux"
_OTHER_PATHS = {
    "/v1/responses": "responses are not served here: use /v1/chat/completions",
}
"""What is said of paths that OpenAI has and this server has not."""


class Answering:
    """Runs one path; an exception becomes the answer that fits."""

    def __init__(self, path: ASGIApp, front: FrontService, *, open_to_all: bool = False) -> None:
        self._path = path
        self._front = front
        self._open_to_all = open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not self._open_to_all:
                header = Request(scope).headers.get(AUTHORIZATION)
                self._front.keys.check(header, KeyScope.INFERENCE, scope["path"])
            await self._path(scope, receive, send)
        except ClientLeft:
            pass
        except Exception as error:  # noqa: BLE001 - the one place that turns errors into answers
            await send_error(send, error)


class Questions:
    """The paths that answer at once."""

    def __init__(self, front: FrontService, document: bytes) -> None:
        self._front = front
        self._document = document
        self._since_s = int(time.time())

    async def models(self, scope: Scope, receive: Receive, send: Send) -> None:
        served = [self._model(shown) for shown in self._front.list_models() if not shown.refusal]
        await send_json(send, ModelListBody(object="list", data=served).model_dump_json().encode())

    async def model(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = self._front.show_model(scope["path_params"]["name"])
        if shown.refusal:
            raise NotServable(shown.refusal)
        await send_json(send, self._model(shown).model_dump_json().encode())

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, b'{"status":"alive"}')

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._front.ready:
            raise Unavailable("the server does not take requests now: ask again later")
        await send_json(send, b'{"status":"ready"}')

    async def openapi(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, self._document)

    def _model(self, shown: ShownModel) -> ModelBody:
        assert shown.facts is not None, "a model that is not refused could be read"
        return ModelBody(
            id=shown.name,
            object="model",
            created=self._since_s,
            owned_by=OWNER,
            max_model_len=shown.facts.max_context,
        )


def openai_app(front: FrontService, max_body_bytes: int) -> Starlette:
    """The whole dialect over `front`. Bodies have at most `max_body_bytes`."""
    questions, v2 = Questions(front, openapi_document()), OpenInferencePaths(front)

    def keyed(path: ASGIApp) -> ASGIApp:
        return Answering(path, front)

    def unkeyed(path: ASGIApp) -> ASGIApp:
        return Answering(path, front, open_to_all=True)

    def generating(kind: type[CompletionBody] | type[ChatBody], form: TextForm | ChatForm) -> ASGIApp:
        return keyed(Generations(front, kind, form, max_body_bytes))

    def cancelling(form: TextForm | ChatForm) -> ASGIApp:
        return keyed(Cancellations(front, form.id_prefix))

    routes = [
        Route("/v1/completions", generating(CompletionBody, TextForm()), methods=["POST"]),
        Route("/v1/chat/completions", generating(ChatBody, ChatForm()), methods=["POST"]),
        Route("/v1/embeddings", keyed(EmbeddingPath(front, max_body_bytes)), methods=["POST"]),
        Route("/v1/completions/{id}/cancel", cancelling(TextForm()), methods=["POST"]),
        Route("/v1/chat/completions/{id}/cancel", cancelling(ChatForm()), methods=["POST"]),
        Route("/v1/models", keyed(questions.models), methods=["GET"]),
        Route("/v1/models/{name:path}", keyed(questions.model), methods=["GET"]),
        Route("/health", unkeyed(questions.health), methods=["GET"]),
        Route("/ready", unkeyed(questions.ready), methods=["GET"]),
        Route("/openapi.json", unkeyed(questions.openapi), methods=["GET"]),
        Route("/v2/health/live", unkeyed(v2.live), methods=["GET"]),
        Route("/v2/health/ready", unkeyed(v2.ready), methods=["GET"]),
        Route("/v2", keyed(v2.server), methods=["GET"]),
        Route("/v2/models/{name:path}/ready", keyed(v2.model_ready), methods=["GET"]),
        Route("/v2/models/{name:path}", keyed(v2.model), methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
    app.router.redirect_slashes = False
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """The answer to an unknown path or method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        said = f"{request.method} is not a method of this path"
    else:
        said = _OTHER_PATHS.get(
            request.url.path, "there is no such path: /openapi.json lists those that there are"
        )
    return _Refusal(HttpRefusal(status, said, error.headers))


class _Refusal(Response):
    def __init__(self, refusal: HttpRefusal) -> None:
        super().__init__()
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(send, self._refusal)
