"""What programs are told of errors: a reason that stays, when to try again, which field is wrong; and that a
request which relies on what the server lacks is refused."""

from collections.abc import AsyncIterator
from dataclasses import fields

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from tests.server.harness import Served, ServerThread, serving
from tests.server.scripted_models import CONTEXT
from tokenmux.client import AsyncClient, CallFailed, Client
from tokenmux.core.errors import InvalidRequest, Overloaded, TokenmuxError, Unavailable
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.front.generation import Ask
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.tenants import QueuePlaces, Weights
from tokenmux.server.front.turnover import Turnover
from tokenmux.server.grpc_api.field_paths import FEATURES, path_of
from tokenmux.server.grpc_api.status import refusal_of
from tokenmux.v1 import inference_pb2

NOT_IN_REQUESTS = {"n", "delivered", "pooling", "timeout_s"}
"""Fields of `Ask` that the API has no field for, or not yet."""


class VirtualClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.target) as connected:
        yield connected


async def test_a_wrong_field_is_named_by_its_path(client: AsyncClient) -> None:
    with pytest.raises(CallFailed) as caught:
        await client.generate("letters", "a", temperature=99)
    details = caught.value.details
    assert (details.reason, details.fields) == ("INVALID_REQUEST", ("sampling.temperature",))
    assert details.retry_after_s is None
    with pytest.raises(CallFailed) as caught:
        await client.generate("letters", "a", stop=["x"] * 17)
    details = caught.value.details
    assert (details.fields, details.metadata["limit"], details.metadata["given"]) == (
        ("stopping.strings",), "16", "17",
    )  # fmt: skip


async def test_a_prompt_that_is_too_long_says_by_how_much(client: AsyncClient) -> None:
    with pytest.raises(CallFailed) as caught:
        async for _ in client.stream("letters", "a" * CONTEXT):
            pass
    details = caught.value.details
    assert details.reason == "CONTEXT_EXCEEDED"
    assert details.metadata == {"limit": str(CONTEXT - 1), "given": str(CONTEXT), "model": "letters"}


async def test_an_unknown_model_and_a_wrong_key_have_reasons() -> None:
    async with serving(keys=(Key.of("a", Scope.INFERENCE, "secret" * 4),)) as served:
        async with AsyncClient(served.target, api_key="secret" * 4) as client:
            with pytest.raises(CallFailed) as caught:
                await client.metadata("lettres")
            assert caught.value.details.metadata == {"model": "lettres"}
            assert caught.value.details.reason == "NOT_FOUND"
            with pytest.raises(CallFailed) as caught:
                await client.models.list()
            assert caught.value.details.reason == "FORBIDDEN"
        async with AsyncClient(served.target) as stranger:
            with pytest.raises(CallFailed) as caught:
                await stranger.metadata("letters")
            assert caught.value.details.reason == "UNAUTHENTICATED"


async def test_a_request_that_cannot_be_decoded_has_a_reason(served: Served) -> None:
    call = served.channel.unary_unary("/tokenmux.v1.InferenceService/Generate", None, None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff")
    ((_, value),) = [pair for pair in caught.value.trailing_metadata() if pair[0].endswith("-bin")]
    info = ErrorInfo()
    assert Status.FromString(value).details[0].Unpack(info)
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "tokenmux")


def test_the_blocking_client_has_the_details_too() -> None:
    with (
        ServerThread(lambda: serving(limits=Limits(max_requests=0))) as running,
        Client(running.served.target) as client,
        pytest.raises(CallFailed) as caught,
    ):
        client.generate("letters", "a")
    assert (caught.value.details.reason, caught.value.details.retry_after_s) == ("OVERLOADED", 2.0)
    assert caught.value.details.metadata == {"limit": "0"}


def test_when_to_try_again_is_measured_once_requests_have_ended() -> None:
    clock = VirtualClock()
    turnover = Turnover(clock)
    assert turnover.wait_s(1) is None
    for clock.now_s in (0.0, 0.5, 1.0, 1.5):
        turnover.ended()
    assert (turnover.wait_s(1), turnover.wait_s(4)) == (0.5, 2.0)
    clock.now_s = 4.5
    assert turnover.wait_s(1) == 3.0
    clock.now_s = 1e6
    assert turnover.wait_s(1) == 60.0
    assert turnover.wait_s(0) == 0.1


def test_a_full_queue_says_what_it_measured() -> None:
    clock = VirtualClock()
    places = QueuePlaces(1, Weights(), clock)
    for clock.now_s in (0.0, 7.0):
        places.take("a")
        places.give_back("a")
    places.take("a")
    with pytest.raises(Overloaded) as caught, places.admitting("a"):
        pass
    assert caught.value.retry_s == 7.0


def test_details_agree_with_the_call() -> None:
    """grpc's own helper refuses details whose code or message differs from the call's."""
    for error in (Unavailable("ü" * 5000), InvalidRequest("top_k -1 is negative"), TokenmuxError("plain")):
        refusal = refusal_of(error)
        status = Status.FromString(refusal.details)
        assert (status.code, status.message) == (refusal.code.value[0], refusal.message)
        assert len(refusal.message.encode()) <= 2048


def test_every_field_of_a_request_has_a_path_that_exists() -> None:
    for name in (field.name for field in fields(Ask)):
        path = path_of(InvalidRequest("", field=name))
        assert path in {*FEATURES, "prompt"} or name in NOT_IN_REQUESTS, name
    assert path_of(InvalidRequest("no field at all")) is None
    assert path_of(InvalidRequest("echo repeats")) == "output.echo"


async def test_what_a_server_lacks_is_refused_and_what_it_has_is_not(served: Served) -> None:
    metadata = await served.inference.ServerMetadata(inference_pb2.ServerMetadataRequest())
    assert metadata.name == "tokenmux"
    assert {"sampling.min_p", "stopping.strings", "chat.messages.role", "logprobs"} <= {*metadata.features}
    request = inference_pb2.GenerateRequest(model="letters", text="a", stopping={"max_tokens": 1})
    request.required_features.extend(metadata.features)
    request.required_features[:] = request.required_features[:64]
    assert (await served.inference.Generate(request)).choices[0].text == "b"
    request.required_features[:] = ["telepathy", "sampling.min_p"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.inference.Generate(request)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "'telepathy'" in (caught.value.details() or "")
    assert "min_p" not in (caught.value.details() or "")
    request.required_features[:] = ["x"] * 65
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.inference.Generate(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_violation_is_a_bad_request() -> None:
    status = Status.FromString(refusal_of(InvalidRequest("n 99 is out of range", field="n")).details)
    wrong = BadRequest()
    assert status.details[1].Unpack(wrong)
    assert [violation.field for violation in wrong.field_violations] == ["n"]


async def test_rules_of_devices_name_their_field(client: AsyncClient) -> None:
    with pytest.raises(CallFailed, match="nothing to undo") as caught:
        await client.pool.drain_device(0, undo=True)
    assert caught.value.details.fields == ("undo",)
    with pytest.raises(CallFailed, match="give its new size") as caught:
        await client.pool.resize(0)
    assert caught.value.details.fields == ("arena_bytes",)
