"""The services over a real channel on loopback: translation, status, cancellation, health, reflection,
keys, the end."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from msgspec import structs

from tests.server.harness import PATIENCE_S, Served, make_front, serving
from tests.server.sample_reports import device_status, node_status
from tests.server.scripted_models import CONTEXT, END, VOCAB, FakeEntry, LetterTokenizer, facts
from tokenmux.client import AsyncClient, CallFailed
from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.phases import DeviceState, Residency
from tokenmux.core.request import FinishReason
from tokenmux.messages.commands import Cancel, Load, Pause, Pin, Resume, Submit, Unload, Unregister
from tokenmux.messages.reports import Broken, Finished, Tokens
from tokenmux.server.app import Transport, running, until_signalled
from tokenmux.server.front import pool_status
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.front.limits import Limits
from tokenmux.server.grpc_api import health as health_module
from tokenmux.server.grpc_api import status_deltas
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)
from tokenmux.v1 import inference_pb2, inference_pb2_grpc, models_pb2, operations_pb2, planning_pb2, pool_pb2

Code = grpc.StatusCode


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with asyncio.timeout(PATIENCE_S), serving() as everything:
        yield everything


def streamed(
    text: str = "abc", model: str = "letters", **stopping: object
) -> inference_pb2.GenerateStreamRequest:
    return inference_pb2.GenerateStreamRequest(request=generate(text, model, **stopping))


def generate(text: str = "abc", model: str = "letters", **stopping: object) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(
        model=model,
        text=text,
        stopping=inference_pb2.Stopping(**stopping),  # type: ignore[arg-type]
    )


async def refused(call: grpc.aio.UnaryUnaryCall) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


# Inference


async def test_generate_answers_with_everything(served: Served) -> None:
    response = await served.inference.Generate(generate(max_tokens=3))
    (choice,) = response.choices
    assert (choice.text, bytes(choice.token_ids), choice.index) == ("def", b"def", 0)
    assert response.prompt_info.model == "letters"
    assert (response.prompt_info.n_prompt_tokens, response.prompt_info.max_tokens) == (3, 3)
    assert choice.finish_info.reason == inference_pb2.FINISH_REASON_LENGTH
    assert choice.finish_info.WhichOneof("stopped_by") is None
    assert choice.finish_info.usage == inference_pb2.Usage(
        n_prompt_tokens=3, n_completion_tokens=3, n_tokens_on_time=3
    )
    assert choice.finish_info.seed == response.prompt_info.seed == 1234


async def test_a_stream_has_its_events_in_order(served: Served) -> None:
    events = [event async for event in served.inference.GenerateStream(streamed(max_tokens=3))]
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("prompt_info", "finish_info")
    assert set(kinds[1:-1]) == {"state", "tokens"}
    assert "".join(event.tokens.text for event in events) == "def"
    states = [event.state for event in events if event.WhichOneof("event") == "state"]
    assert states[-1].phase == inference_pb2.REQUEST_PHASE_RUNNING


async def test_a_stop_string_is_named(served: Served) -> None:
    response = await served.inference.Generate(generate(max_tokens=9, strings=["fg"]))
    (choice,) = response.choices
    assert (choice.text, choice.finish_info.stop_string) == ("de", "fg")
    assert choice.finish_info.reason == inference_pb2.FINISH_REASON_STOP


async def test_absent_fields_are_the_servers_defaults_and_zeros_are_not(served: Served) -> None:
    await served.inference.Generate(generate())
    submit = await served.hub.next(Submit)
    assert (submit.request.max_tokens, submit.sampling.top_p, submit.request.weight) == (8, 1.0, 1.0)
    zero = inference_pb2.Sampling(top_p=0.0)
    request = inference_pb2.GenerateRequest(model="letters", text="a", sampling=zero)
    assert (await refused(served.inference.Generate(request)))[0] is Code.INVALID_ARGUMENT
    zero = inference_pb2.Sampling(seed=0)
    request = inference_pb2.GenerateRequest(model="letters", text="a", sampling=zero)
    assert (await served.inference.Generate(request)).choices[0].finish_info.seed == 0


async def test_a_prompt_that_is_scored_may_take_the_whole_context() -> None:
    request = generate("b" * 32, max_tokens=0)
    request.prompt_logprobs = 0
    async with serving(FakeEntry(facts("letters", max_context=32))) as served:
        (choice,) = (await served.inference.Generate(request)).choices
        request.text += "b"
        code, said = await refused(served.inference.Generate(request))
    assert (choice.finish_info.usage.n_prompt_tokens, choice.finish_info.usage.n_completion_tokens) == (32, 0)
    assert (code, "shorten the prompt to at most 32 tokens" in said) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (generate(model="lettres"), Code.NOT_FOUND, "did you mean 'letters'"),
        (generate("x" * CONTEXT), Code.INVALID_ARGUMENT, "shorten the prompt"),
        (generate(max_tokens=-5), Code.INVALID_ARGUMENT, "max_tokens -5"),
        (generate(max_tokens=60), Code.FAILED_PRECONDITION, "at most 60"),
        (inference_pb2.GenerateRequest(model="letters"), Code.INVALID_ARGUMENT, "no prompt"),
        (
            inference_pb2.GenerateRequest(model="letters", token_ids=inference_pb2.TokenIds(ids=[VOCAB])),
            Code.INVALID_ARGUMENT,
            "token ids 0 to 255",
        ),
    ],
)
async def test_wrong_requests_get_status_and_remedy(
    served: Served, request_: inference_pb2.GenerateRequest, code: grpc.StatusCode, message: str
) -> None:
    got, details = await refused(served.inference.Generate(request_))
    assert got is code
    assert message in details
    with pytest.raises(grpc.aio.AioRpcError, match=message):
        async for _ in served.inference.GenerateStream(inference_pb2.GenerateStreamRequest(request=request_)):
            pass


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
@pytest.mark.parametrize(
    "data", [b"\x0a\x07letters\x12\x02\xc3\x28", b"\xff\xff\xff"], ids=["broken UTF-8", "no protobuf"]
)
async def test_what_cannot_be_decoded_is_the_callers_fault(served: Served, method: str, data: bytes) -> None:
    path = f"/tokenmux.v1.InferenceService/{method}"
    if method == "Generate":
        code, details = await refused(served.channel.unary_unary(path)(data))
    else:
        stream = served.channel.unary_stream(path)(data)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stream:
                pass
        code, details = caught.value.code(), caught.value.details() or ""
    assert code is Code.INVALID_ARGUMENT
    assert "valid UTF-8" in details
    assert (await served.inference.Generate(generate(max_tokens=1))).choices[0].text == "d"


async def test_a_request_over_the_size_limit_is_refused() -> None:
    async with serving(transport=Transport(max_message_bytes=1000)) as served:
        code, said = await refused(served.inference.Generate(generate("x" * 2000)))
        assert (code, "the server takes 1000" in said) == (Code.INVALID_ARGUMENT, True)
        code, _ = await refused(served.inference.Generate(generate("x" * 20_000)))
        assert code is Code.RESOURCE_EXHAUSTED, "gRPC's own limit, before it is read"


async def test_a_fault_of_ours_is_an_id_and_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    def gate() -> None:
        raise RuntimeError("/secret/path")

    faulty = FakeEntry(facts("letters"), letters=LetterTokenizer(gate=gate))
    async with serving(faulty) as served:
        code, details = await refused(served.inference.Generate(generate()))
    assert code is Code.INTERNAL
    assert "secret" not in details
    incident = details.removeprefix("internal error ").partition(":")[0]
    assert incident in caplog.text
    assert "/secret/path" in caplog.text


async def test_tokenize_and_metadata(served: Served) -> None:
    request = inference_pb2.TokenizeRequest(model="letters", text="abc")
    assert bytes((await served.inference.Tokenize(request)).token_ids) == b"abc"
    chat = inference_pb2.Chat(messages=[inference_pb2.ChatMessage(role="user", content="hi")])
    request = inference_pb2.TokenizeRequest(model="letters", chat=chat)
    assert bytes((await served.inference.Tokenize(request)).token_ids) == b"u:hi;"
    code, _ = await refused(served.inference.Tokenize(inference_pb2.TokenizeRequest(model="letters")))
    assert code is Code.INVALID_ARGUMENT
    answer = await served.inference.ModelMetadata(inference_pb2.ModelMetadataRequest(model="letters"))
    assert answer == inference_pb2.ModelMetadataResponse(
        model="letters", max_context=CONTEXT, vocab_size=VOCAB, has_chat_template=True, end_token_ids=[END]
    )


async def test_a_model_without_a_template_says_that_it_cannot_chat() -> None:
    plain = FakeEntry(facts("letters"), letters=LetterTokenizer(has_chat_template=False))
    async with serving(plain) as served:
        request = inference_pb2.ModelMetadataRequest(model="letters")
        assert not (await served.inference.ModelMetadata(request)).has_chat_template


async def test_readiness() -> None:
    huge = FakeEntry(facts("huge", n_bytes=10**6))
    async with serving(huge, FakeEntry(facts("letters"))) as served:
        ready = served.inference.ModelReady
        assert (await served.inference.ServerReady(inference_pb2.ServerReadyRequest())).ready
        assert (await ready(inference_pb2.ModelReadyRequest(model="letters"))).ready
        assert not (await ready(inference_pb2.ModelReadyRequest(model="huge"))).ready
        assert (await refused(ready(inference_pb2.ModelReadyRequest(model="x"))))[0] is Code.NOT_FOUND


# Clients that go, and clients that do not read


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_vanishes_cancels_its_request(streaming: bool) -> None:
    async with asyncio.timeout(PATIENCE_S), serving(auto=False) as served:
        method = served.inference.GenerateStream if streaming else served.inference.Generate
        call = method(streamed() if streaming else generate())
        submit = await served.hub.next(Submit)
        call.cancel()
        assert await served.hub.next(Cancel) == Cancel(submit.request.id)


async def test_a_client_that_vanishes_in_mid_stream_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asyncio.timeout(PATIENCE_S), serving(WIDE, auto=False) as served:
        async with grpc.aio.insecure_channel(served.target) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).GenerateStream(streamed(max_tokens=50))
            producing = asyncio.create_task(Producer(served, await served.hub.next(Submit)).run())
            await call.read()
        await producing
    assert "error" not in caplog.text


@pytest.mark.parametrize(("timeout_s", "expires_s"), [(30.0, 130.0), (10.0**6, inf), (None, inf)])
async def test_the_deadline_of_a_call_reaches_the_scheduler(
    timeout_s: float | None, expires_s: float
) -> None:
    async with asyncio.timeout(PATIENCE_S), serving(auto=False) as served:
        call = served.inference.GenerateStream(streamed(), timeout=timeout_s)
        request = (await served.hub.next(Submit)).request
        assert request.expires_s == pytest.approx(expires_s, abs=10.0)
        served.hub.post(Finished(request.id, FinishReason.EXPIRED, 130.0))
        code, said = await refused_stream(call)
        assert (code, said.partition(" for ")[0]) == (Code.DEADLINE_EXCEEDED, "the time")


async def test_a_deadline_of_the_client_cancels_its_request() -> None:
    async with asyncio.timeout(PATIENCE_S), serving(auto=False) as served:
        code, _ = await refused(served.inference.Generate(generate(), timeout=0.5))
        assert code is Code.DEADLINE_EXCEEDED
        await served.hub.next(Cancel)


WIDE = FakeEntry(facts("letters"), letters=LetterTokenizer(width=1 << 19))
"""Four of its tokens are less than the 4 MiB that a gRPC client takes in one message."""
"""A token is a MiB of text, so that a few fill the windows of HTTP/2, which take about 5 MB on loopback."""


class Producer:
    """A node's side of one request: a token every millisecond, except while it is paused, until
    cancelled or done."""

    def __init__(self, served: Served, submit: Submit) -> None:
        self._hub = served.hub
        self._submit = submit
        self.paused = asyncio.Event()
        self.n_resumed = 0

    async def run(self) -> None:
        request, index, paused = self._submit.request, 0, False
        while index < request.max_tokens:
            for message in self._hub.unread():
                match message:
                    case Pause():
                        paused = True
                        self.paused.set()
                    case Resume():
                        paused = False
                        self.n_resumed += 1
                    case Cancel():
                        return
            if not paused:
                self._hub.post(Tokens(request.id, index, (ord("x"),), 100.0))
                index += 1
            await asyncio.sleep(0.001)
        self._hub.post(Finished(request.id, FinishReason.LENGTH, 100.0))


async def test_a_slow_reader_is_paused_and_gets_everything_in_the_end() -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        serving(WIDE, auto=False, limits=Limits(buffer_tokens=4)) as served,
        grpc.aio.insecure_channel(
            served.target, options=[("grpc.max_receive_message_length", -1)]
        ) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        call = inference_pb2_grpc.InferenceServiceStub(channel).GenerateStream(streamed(max_tokens=30))
        producer = Producer(served, await served.hub.next(Submit))
        tasks.create_task(producer.run())
        await producer.paused.wait()
        assert len(await read_text(call)) == 30 << 19
        assert producer.n_resumed > 0


async def test_a_client_that_never_reads_is_ended_and_disturbs_nobody() -> None:
    limits = Limits(buffer_tokens=4, unread_s=0.1)
    async with asyncio.timeout(PATIENCE_S), serving(WIDE, auto=False, limits=limits) as served:
        call = served.inference.GenerateStream(streamed(max_tokens=50))
        await Producer(served, await served.hub.next(Submit)).run()
        served.hub.auto = True
        other = await served.inference.Generate(generate(max_tokens=1))
        assert other.choices[0].finish_info.usage.n_completion_tokens == 1
        code, details = await refused_stream(call)
        assert code is Code.ABORTED
        assert "left more than 4 tokens unread" in details


async def read_text(call: grpc.aio.UnaryStreamCall) -> str:
    return "".join([event.tokens.text async for event in call])


# Operators


async def test_models_are_listed_with_what_the_node_says(served: Served) -> None:
    model = (await served.models.GetModel(models_pb2.GetModelRequest(name="letters"))).model
    assert model.residency == models_pb2.RESIDENCY_UNSPECIFIED
    version = served.front.changes.version
    served.hub.post(node_status("letters"))
    await served.front.changes.after(version)
    (model,) = (await served.models.ListModels(models_pb2.ListModelsRequest())).models
    assert model == models_pb2.Model(
        name="letters", residency=models_pb2.RESIDENCY_RESIDENT, weight_bytes=1000, kv_bytes_per_token=64,
        n_parameters=500, max_context=CONTEXT, vocab_size=VOCAB, n_queued=1, n_running=2, n_paged_out=3,
        n_tokens_overdue=14, n_swaps=4,
        swap_bytes=5, swap_s=6, swap_exposed_s=7, n_tokens=8, n_tokens_on_time=9, n_prompt_tokens=10,
        compute_s=11,
        n_swaps_first=51, n_swaps_again=52, n_swaps_operator=53, n_swaps_ahead=54, instances=[0],
    )  # fmt: skip


async def test_a_model_is_registered_served_and_removed(served: Served, tmp_path: Path) -> None:
    request = models_pb2.RegisterModelRequest(name="more", source=str(tmp_path))
    ended = await served.register("more", str(tmp_path))
    assert (ended.model, ended.state) == ("more", operations_pb2.OPERATION_STATE_DONE)
    assert (await refused(served.models.RegisterModel(request)))[0] is Code.ALREADY_EXISTS
    assert (await served.inference.Generate(generate(model="more", max_tokens=1))).choices[0].text == "d"
    await served.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="more"))
    assert await served.hub.next(Unregister) == Unregister(facts("more").id)
    assert (await refused(served.inference.Generate(generate(model="more"))))[0] is Code.NOT_FOUND
    assert [*served.catalogue.kept] == ["letters"]


async def test_what_was_pulled_meanwhile_is_registered_without_a_source(served: Served) -> None:
    served.catalogue.kept["pulled"] = FakeEntry(facts("pulled"))
    await served.register("pulled")
    assert (await served.inference.Generate(generate(model="pulled", max_tokens=1))).choices[0].text == "d"


@pytest.mark.parametrize(
    ("name", "source", "code", "message"),
    [
        ("bad name", "x", Code.INVALID_ARGUMENT, "letters, digits"),
        ("", "x", Code.INVALID_ARGUMENT, "letters, digits"),
        ("new", "", Code.NOT_FOUND, "no model named new in the catalogue"),
        ("new", "nowhere", Code.NOT_FOUND, "nowhere: there is no such folder or file"),
        ("new", "huge", Code.FAILED_PRECONDITION, "raise device.arena"),
        ("strange", "x", Code.FAILED_PRECONDITION, "unknown architecture"),
    ],
)
async def test_what_cannot_be_registered_leaves_nothing_behind(
    served: Served, tmp_path: Path, name: str, source: str, code: grpc.StatusCode, message: str
) -> None:
    for folder in ("huge", "x"):
        (tmp_path / folder).mkdir()
    path = str(tmp_path / source) if source else ""
    served.hub.refuses["strange"] = "unknown architecture"
    async with AsyncClient(served.target) as client:
        with pytest.raises(CallFailed, match=message) as caught:
            await client.models.register(name, path)
    assert caught.value.code is code
    assert [*served.catalogue.kept] == ["letters"]
    assert [model.facts.id for model in served.front.models] == ["letters"]


async def test_a_model_in_use_is_removed_by_force_only() -> None:
    async with asyncio.timeout(PATIENCE_S), serving(auto=False) as served:
        call = served.inference.GenerateStream(streamed())
        submit = await served.hub.next(Submit)
        remove = served.models.UnregisterModel
        code, details = await refused(remove(models_pb2.UnregisterModelRequest(name="letters")))
        assert code is Code.FAILED_PRECONDITION
        assert "1 live requests" in details
        await remove(models_pb2.UnregisterModelRequest(name="letters", force=True))
        served.hub.post(Finished(submit.request.id, FinishReason.FAILED, 0.0, "its model was removed"))
        with pytest.raises(grpc.aio.AioRpcError, match="its model was removed") as caught:
            async for _ in call:
                pass
        assert caught.value.code() is Code.ABORTED


async def test_load_unload_and_pin_reach_the_node(served: Served) -> None:
    letters = facts("letters").id
    await served.models.LoadModel(models_pb2.LoadModelRequest(name="letters"))
    assert await served.hub.next(Load) == Load(letters)
    await served.models.UnloadModel(models_pb2.UnloadModelRequest(name="letters"))
    assert await served.hub.next(Unload) == Unload(letters)
    assert (
        await served.models.PinModel(models_pb2.PinModelRequest(name="letters", pinned=True))
    ).model.pinned
    assert await served.hub.next(Pin) == Pin(letters, True)
    assert not (await served.models.PinModel(models_pb2.PinModelRequest(name="letters"))).model.pinned
    served.hub.refuses["letters"] = "the pinned models leave no room"
    code, details = await refused(served.models.LoadModel(models_pb2.LoadModelRequest(name="letters")))
    assert (code, details) == (Code.FAILED_PRECONDITION, "the pinned models leave no room")


async def test_load_can_wait_until_the_model_is_resident(served: Served) -> None:
    call = served.models.LoadModel(models_pb2.LoadModelRequest(name="letters", wait=True))
    await served.hub.next(Load)
    served.hub.post(node_status("letters", residency=Residency.LOADING))
    version = served.front.changes.version
    await served.front.changes.after(version)
    assert not call.done()
    served.hub.post(node_status("letters"))
    assert (await call).model.residency == models_pb2.RESIDENCY_RESIDENT


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"load_error": "model.image: cut off"}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"unload_asked": True}, grpc.StatusCode.ABORTED),
    ],
)
async def test_waiting_for_a_load_that_failed_ends(
    served: Served, status: dict[str, Any], code: grpc.StatusCode
) -> None:
    waiting = asyncio.ensure_future(
        served.models.LoadModel(models_pb2.LoadModelRequest(name="letters", wait=True))
    )
    await served.hub.next(Load)
    now = node_status("letters", residency=Residency.DISK)
    served.hub.post(now)
    await asyncio.sleep(0)
    served.hub.post(structs.replace(now, models=(structs.replace(now.models[0], **status),)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(waiting, PATIENCE_S)
    assert caught.value.code() is code


async def test_waiting_for_a_load_ends_with_the_node(served: Served) -> None:
    waiting = asyncio.ensure_future(
        served.models.LoadModel(models_pb2.LoadModelRequest(name="letters", wait=True))
    )
    await served.hub.next(Load)
    served.hub.post(node_status("letters", residency=Residency.DISK))
    served.hub.post(Broken("killed"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(waiting, PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("figures", [{"max_context": -5}, {"max_context": 10**30}, {"n_parameters": 0.5}])
async def test_one_odd_model_does_not_break_the_calls_about_all(figures: dict[str, Any]) -> None:
    odd = FakeEntry(replace(facts("odd"), **figures))
    async with serving(FakeEntry(facts("letters")), odd) as served:
        listed = (await served.models.ListModels(models_pb2.ListModelsRequest())).models
        assert [model.name for model in listed] == ["letters", "odd"]
        assert "its figures are impossible" in listed[1].refusal
        assert [m.name for m in (await served.pool.GetStatus(pool_pb2.GetStatusRequest())).status.models] == [
            "letters",
            "odd",
        ]
        sizes = (await served.planning.GetCatalogue(planning_pb2.GetCatalogueRequest())).models
        assert [model.name for model in sizes] == ["letters"]


async def test_status_tells_memory_channels_devices_and_models(served: Served) -> None:
    version = served.front.changes.version
    out = device_status(
        instance=InstanceId(3),
        state=DeviceState.OUT,
        fault="it broke",
        loading_model=ModelId("letters"),
        pinned=(ModelId("letters"),),
    )
    served.hub.post(node_status("letters", devices=(device_status("letters"), out)))
    await served.front.changes.after(version)
    status = (await served.pool.GetStatus(pool_pb2.GetStatusRequest())).status
    assert (status.n_requests, status.max_requests, status.n_restarts) == (0, 256, 0)
    assert [model.name for model in status.models] == ["letters"]
    assert list(status.instances) == [
        pool_pb2.Instance(
            device="virtual GPU", state=pool_pb2.DEVICE_STATE_SERVING, arena_bytes=10_000, weight_bytes=2_000,
            kv_bytes=300, compute_busy_s=8, copy_in_busy_s=9, copy_out_busy_s=10, fetch_busy_s=11, n_steps=12,
            n_discards=13, work_s=9.5, model_work_s=34, running_model="letters", resident_models=["letters"],
            n_requests=14, n_deaths=15,
            paged_in_bytes=16, paged_out_bytes=17,
        ),
        pool_pb2.Instance(
            id=3, device="virtual GPU", state=pool_pb2.DEVICE_STATE_OUT, fault="it broke", arena_bytes=10_000,
            weight_bytes=2_000, kv_bytes=300, compute_busy_s=8, copy_in_busy_s=9, copy_out_busy_s=10,
            fetch_busy_s=11, n_steps=12, n_discards=13, work_s=9.5, model_work_s=34, loading_model="letters",
            pinned_models=["letters"], n_requests=14, n_deaths=15,
            paged_in_bytes=16, paged_out_bytes=17,
        ),
    ]  # fmt: skip
    host = (status.host_cache_bytes, status.host_cache_used_bytes, status.host_kv_bytes)
    assert (*host, status.host_kv_used_bytes) == (40_000, 5_000, 6_000, 700)
    assert (status.at_s, status.work_s, status.model_work_s, status.n_models_used) == (1.5, 10, 35, 5)
    assert (status.devices_saved, status.devices_saved_dedicated) == (35 / 10 - 2, 5 - 2)


async def test_watching_gives_the_status_now_and_at_every_change(served: Served) -> None:
    call = served.pool.WatchStatus(pool_pb2.WatchStatusRequest())
    assert not (await call.read()).status.instances
    served.hub.post(node_status("letters"))
    assert (await call.read()).status.instances[0].device == "virtual GPU"
    code, _ = await refused_stream(served.pool.WatchStatus(pool_pb2.WatchStatusRequest(min_interval_s=-1)))
    assert code is Code.INVALID_ARGUMENT


async def refused_stream(call: grpc.aio.UnaryStreamCall) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value.code(), caught.value.details() or ""


# Standard services


async def test_health_overall_and_per_model(served: Served) -> None:
    health = health_pb2_grpc.HealthStub(served.channel)
    status = health_pb2.HealthCheckResponse

    async def of(name: str) -> int:
        return (await health.Check(health_pb2.HealthCheckRequest(service=name))).status

    assert [await of(""), await of("tokenmux.v1.InferenceService"), await of("models/letters")] == [
        status.SERVING
    ] * 3
    assert (await refused(health.Check(health_pb2.HealthCheckRequest(service="models/x"))))[
        0
    ] is Code.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="models/letters"))
    assert (await watch.read()).status == status.SERVING
    await served.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="letters"))
    assert (await watch.read()).status == status.SERVICE_UNKNOWN
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == status.SERVING
    await served.front.drain()
    assert (await watch.read()).status == status.NOT_SERVING


async def test_health_of_all_and_of_names_that_nothing_can_have(served: Served) -> None:
    health = health_pb2_grpc.HealthStub(served.channel)
    listed = (await health.List(health_pb2.HealthListRequest())).statuses
    assert {name: value.status for name, value in listed.items()} == dict.fromkeys(
        ("", "tokenmux.v1.InferenceService", "models/letters"), health_pb2.HealthCheckResponse.SERVING
    )
    long = health_pb2.HealthCheckRequest(service="models/" + "x" * 3_000_000)
    code, said = await refused(health.Check(long))
    assert (code, "3000000 characters" in said) == (Code.INVALID_ARGUMENT, True)
    watch = health.Watch(long)
    with pytest.raises(grpc.aio.AioRpcError):
        await watch.read()
    assert await watch.code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("watched", ["status", "health"])
async def test_there_is_an_end_to_how_many_may_watch(watched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_status, "MAX_STATUS_WATCHERS", 2)
    monkeypatch.setattr(health_module, "MAX_HEALTH_WATCHERS", 2)
    async with serving() as served:
        health = health_pb2_grpc.HealthStub(served.channel)

        def watch() -> Any:
            if watched == "status":
                return served.pool.WatchStatus(pool_pb2.WatchStatusRequest())
            return health.Watch(health_pb2.HealthCheckRequest())

        first, second = watch(), watch()
        await first.read()
        await second.read()
        third = watch()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await third.read()
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        first.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                fourth = watch()
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await fourth.read()
                    break


async def test_a_status_is_made_once_for_all_who_watch(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    make = status_deltas.summary_message

    def counted(status: pool_status.PoolSnapshot) -> pool_pb2.PoolStatus:
        nonlocal made
        made += 1
        return make(status)

    monkeypatch.setattr(pool_status, "FRESH_S", 60.0)
    monkeypatch.setattr(status_deltas, "summary_message", counted)
    watches = [served.pool.WatchStatus(pool_pb2.WatchStatusRequest()) for _ in range(30)]
    await asyncio.gather(*(watch.read() for watch in watches))
    assert made == 1
    served.hub.post(node_status("letters"))
    seen = await asyncio.gather(*(watch.read() for watch in watches))
    assert made == 2
    assert {told.status.instances[0].n_steps for told in seen} == {12}


async def test_a_burst_of_thousands_of_calls_is_served() -> None:
    """gRPC itself ended those over a thousand that waited for the loop as CANCELLED, which no client tries
    again."""
    async with serving(limits=Limits(max_requests=4000)) as crowded:

        async def code() -> grpc.StatusCode:
            call = crowded.inference.Generate(generate(max_tokens=1))
            try:
                await call
            except grpc.aio.AioRpcError as error:
                return error.code()
            return Code.OK

        codes = await asyncio.gather(*(code() for _ in range(3000)))
    assert set(codes) == {Code.OK}


async def test_reflection_describes_the_services(served: Served) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tokenmux.v1.InferenceService"),
    ]
    listed, described = [answer async for answer in stub.ServerReflectionInfo(asked)]
    names = {service.name for service in listed.list_services_response.service}
    assert {"tokenmux.v1.InferenceService", "tokenmux.v1.ModelService", "tokenmux.v1.PoolService"} <= names
    (data,) = described.file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(data).package == "tokenmux.v1"


KEYS = (Key.of("team", Scope.INFERENCE, "sesame"), Key.of("boss", Scope.ADMIN, "open"))


@pytest.mark.parametrize(
    ("authorization", "inference", "admin"),
    [
        (None, Code.UNAUTHENTICATED, Code.UNAUTHENTICATED),
        ("Bearer wrong", Code.UNAUTHENTICATED, Code.UNAUTHENTICATED),
        ("sesame", Code.UNAUTHENTICATED, Code.UNAUTHENTICATED),
        ("Bearer sesame", Code.OK, Code.PERMISSION_DENIED),
        ("bearer open", Code.OK, Code.OK),
    ],
)
async def test_keys_open_what_they_are_for(
    authorization: str | None, inference: grpc.StatusCode, admin: grpc.StatusCode
) -> None:
    metadata = (("authorization", authorization),) if authorization else ()
    async with serving(keys=KEYS) as served:
        calls = {
            served.inference.Generate(generate(), metadata=metadata): inference,
            served.models.ListModels(models_pb2.ListModelsRequest(), metadata=metadata): admin,
            served.pool.GetStatus(pool_pb2.GetStatusRequest(), metadata=metadata): admin,
        }
        for call, code in calls.items():
            assert await call.code() is code
        stream = served.inference.GenerateStream(streamed(), metadata=metadata)
        assert await ending(stream) is inference
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
        assert await ending(stub.ServerReflectionInfo(ask, metadata=metadata)) is admin
        health = health_pb2_grpc.HealthStub(served.channel)
        assert await health.Check(health_pb2.HealthCheckRequest()).code() is Code.OK


async def ending(stream: grpc.aio.UnaryStreamCall) -> grpc.StatusCode:
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in stream:
            pass
    return await stream.code()


async def test_the_name_of_the_key_is_the_tenant() -> None:
    async with serving(keys=KEYS) as served:
        request = generate()
        request.tenant = "somebody else"
        await served.inference.Generate(request, metadata=(("authorization", "Bearer sesame"),))
        assert (await served.hub.next(Submit)).request.tenant == "team"


# Beginning and end


async def test_a_port_in_use_is_a_clear_error(served: Served) -> None:
    front, _ = make_front(hub := ScriptedNodes())
    with pytest.raises(ConfigError, match=rf"cannot listen on {served.target}: the port is in use.*--listen"):
        async with running(front, Transport(served.target)):
            pass
    assert not hub.nodes, "nothing slow begins before the port is ours"


async def test_a_signal_drains_and_a_second_one_does_not_wait() -> None:
    async with asyncio.timeout(PATIENCE_S), serving(auto=False) as served:
        call = served.inference.GenerateStream(streamed())
        await served.hub.next(Submit)
        end = asyncio.create_task(until_signalled(served.front, drain_s=PATIENCE_S))
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        version = served.front.changes.version
        await served.front.changes.after(version)
        assert not served.front.ready
        assert not end.done()
        os.kill(os.getpid(), signal.SIGTERM)
        await end
        assert not call.done()


async def test_a_signal_ends_at_once_what_has_nothing_to_wait_for(served: Served) -> None:
    watch = served.pool.WatchStatus(pool_pb2.WatchStatusRequest())
    await watch.read()
    end = asyncio.create_task(until_signalled(served.front, drain_s=PATIENCE_S))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)
    await end
    assert await watch.read() is grpc.aio.EOF
    code, details = await refused(served.inference.Generate(generate()))
    assert code is Code.UNAVAILABLE
    assert "shutting down" in details
