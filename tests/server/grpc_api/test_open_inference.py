"""Health and metadata of the Open Inference Protocol, asked as a client of the protocol asks: by names and
bytes, with no code of ours."""

import asyncio
from importlib.metadata import version

import grpc
import pytest

from tests.server.harness import PATIENCE_S, Served, serving
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.v1 import open_inference_pb2 as pb2

Code = grpc.StatusCode


async def ask(served: Served, method: str, request: bytes = b"", **options: object) -> bytes:
    call = served.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    answer = await call(request, timeout=PATIENCE_S, **options)  # type: ignore[arg-type]
    assert isinstance(answer, bytes)
    return answer


async def code_of(served: Served, method: str, request: bytes = b"") -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, method, request)
    return caught.value.code()


async def test_a_server_that_serves_says_so() -> None:
    async with serving() as served:
        assert await ask(served, "ServerLive") == b"\x08\x01"
        assert await ask(served, "ServerReady") == b"\x08\x01"
        assert await ask(served, "ModelReady", b"\x0a\x07letters") == b"\x08\x01"
        server = pb2.ServerMetadataResponse.FromString(await ask(served, "ServerMetadata"))
        assert (server.name, server.version) == ("tokenmux", version("tokenmux"))
        assert list(server.extensions) == []
        request = pb2.ModelMetadataRequest(name="letters", version="1").SerializeToString()
        model = pb2.ModelMetadataResponse.FromString(await ask(served, "ModelMetadata", request))
        assert (model.name, list(model.versions), model.platform) == ("letters", ["1"], "tokenmux")


async def test_one_that_does_not_says_so_too() -> None:
    huge = FakeEntry(facts("huge", n_bytes=10**6))
    async with serving(huge, FakeEntry(facts("letters"))) as served:
        assert await ask(served, "ModelReady", b"\x0a\x04huge") == b""
        drained = asyncio.create_task(served.front.drain())
        await asyncio.wait([drained])
        assert await ask(served, "ServerReady") == b""
        assert await ask(served, "ServerLive") == b"\x08\x01"


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
async def test_models_and_versions_that_there_are_not(method: str) -> None:
    async with serving() as served:
        assert await code_of(served, method, b"\x0a\x07lettres") is Code.NOT_FOUND
        assert await code_of(served, method, b"\x0a\x07letters\x12\x012") is Code.NOT_FOUND
        assert await code_of(served, method, b"\x0a\xff") is Code.INVALID_ARGUMENT


async def test_tensors_are_not_taken() -> None:
    async with serving() as served:
        assert await code_of(served, "ModelInfer") is Code.UNIMPLEMENTED


async def test_a_key_is_needed_where_there_are_keys() -> None:
    async with serving(keys=[Key.of("team", Scope.INFERENCE, "a")]) as served:
        assert await code_of(served, "ServerReady") is Code.UNAUTHENTICATED
        assert await ask(served, "ServerReady", metadata=[("authorization", "Bearer a")]) == b"\x08\x01"
