"""Health and metadata of the Open Inference Protocol: the paths under `/v2`.

GET /v2                 GET /v2/health/live       GET /v2/models/NAME
                        GET /v2/health/ready      GET /v2/models/NAME/ready
"""

from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from tokenmux.core.errors import Unavailable
from tokenmux.server.front.open_inference import ONLY_VERSION, PLATFORM, OpenInference
from tokenmux.server.front.service import FrontService
from tokenmux.server.http_api.json_answers import send_json


class LiveBody(BaseModel):
    """The server answers."""

    live: bool


class ReadyBody(BaseModel):
    """Requests are accepted: the answer is an error otherwise."""

    ready: bool


class ModelReadyBody(ReadyBody):
    """Requests for a model are accepted: the answer is an error otherwise."""

    name: str


class ServerBody(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorBody(BaseModel):
    """A tensor of a model."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataBody(BaseModel):
    """What a model is. It has no tensors that a client could send."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorBody]
    outputs: list[TensorBody]


class OpenInferencePaths:
    """The paths that the protocol has, each an ASGI application."""

    def __init__(self, front: FrontService) -> None:
        self._answers = OpenInference(front)

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _send(send, LiveBody(live=True))

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._answers.ready:
            raise Unavailable("the server does not take requests now: ask again later")
        await _send(send, ReadyBody(ready=True))

    async def server(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self._answers.server()
        await _send(send, ServerBody(name=server.name, version=server.version, extensions=[]))

    async def model(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = self._answers.model_name(scope["path_params"]["name"])
        body = ModelMetadataBody(name=name, versions=[ONLY_VERSION], platform=PLATFORM, inputs=[], outputs=[])
        await _send(send, body)

    async def model_ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["name"]
        if not self._answers.model_ready(name):
            raise Unavailable(f"requests for {name} are not taken now: GET /v1/models/{name} says why")
        await _send(send, ModelReadyBody(name=name, ready=True))


async def _send(send: Send, body: BaseModel) -> None:
    await send_json(send, body.model_dump_json().encode())
