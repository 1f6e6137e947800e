"""All paths of the dialect as one ASGI application. What each needs, a key or nothing, is listed here.

POST /v1/completions         GET /v1/models         GET /health          open to all, as the health
POST /v1/chat/completions    GET /v1/models/NAME    GET /ready           service of gRPC is
POST each of them/ID/cancel  GET /v2/...            GET /openapi.json
POST /v1/embeddings                                 GET /v2/health/...

GET /metrics needs a key for metrics, or an administrator's. It belongs neither to the dialect nor to
/openapi.json, and may be at an address of its own instead (`tokenmux.server.http_api.metrics_app`).
"""

import time

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenmux.core.errors import NotServable, Unavailable
from tokenmux.server.front.api_keys import Scope as KeyScope
from tokenmux.server.front.service import FrontService
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.http_api.answer_bodies import ModelBody, ModelListBody
from tokenmux.server.http_api.answer_forms import ChatForm, TextForm
from tokenmux.server.http_api.answering import Answering, refused_paths
from tokenmux.server.http_api.cancellations import Cancellations
from tokenmux.server.http_api.embedding_path import EmbeddingPath
from tokenmux.server.http_api.generations import Generations
from tokenmux.server.http_api.json_answers import send_json
from tokenmux.server.http_api.metrics_path import METRICS, MetricsPath
from tokenmux.server.http_api.open_inference_paths import OpenInferencePaths
from tokenmux.server.http_api.openapi_document import openapi_document
from tokenmux.server.http_api.request_bodies import ChatBody, CompletionBody

OWNER = "tokenmux"
_OTHER_PATHS = {
    "/v1/responses": "responses are not served here: use /v1/chat/completions",
}
"""What is said of paths that OpenAI has and this server has not."""


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


def openai_app(front: FrontService, max_body_bytes: int, *, metrics: bool = True) -> Starlette:
    """The whole dialect over `front`. Bodies have at most `max_body_bytes`. Without `metrics`, they are
    elsewhere."""
    questions, v2 = Questions(front, openapi_document()), OpenInferencePaths(front)

    def keyed(path: ASGIApp) -> ASGIApp:
        return Answering(path, front, needs=KeyScope.INFERENCE)

    def unkeyed(path: ASGIApp) -> ASGIApp:
        return Answering(path, front, needs=None)

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
    if metrics:
        needs = KeyScope.METRICS
        routes.append(Route(METRICS, Answering(MetricsPath(front), front, needs=needs), methods=["GET"]))
    no_path = "there is no such path: /openapi.json lists those that there are"
    app = Starlette(routes=routes, exception_handlers=refused_paths(no_path, _OTHER_PATHS))
    app.router.redirect_slashes = False
    return app
