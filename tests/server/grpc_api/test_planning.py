"""What operators are told of use, traces and traffic, over a real channel."""

import asyncio
import itertools
import json
from dataclasses import astuple

import grpc
import pytest

from tests.server.harness import PATIENCE_S, make_front, serving
from tests.server.sample_reports import node_status, node_use
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.cli.ask_server import trace_line
from tokenmux.client import AsyncClient, CallFailed
from tokenmux.core.errors import DoesNotFit, ErrorCode, InUse, NotServable, ProcessFailed, Unavailable
from tokenmux.core.facts import ModelId
from tokenmux.core.prefix import Prefix, PrefixKey
from tokenmux.core.request import Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.core.span import Span
from tokenmux.messages.commands import AskTrace, Command, Load, Resize, Submit, Ticket
from tokenmux.messages.reports import Acknowledged, Broken, Traced
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.front.pending_commands import PendingCommands
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.server.grpc_api.planning_messages import MAX_BATCH, MAX_BATCH_HASHES, batches
from tokenmux.testing.scripted_node import (
    ScriptedNodes,
)
from tokenmux.workload.trace import TraceRequest, arrivals

SPANS = [
    Span(0, "copy_in", "letters", 90.0, 91.0, {"bytes": 1000}),
    Span(0, "compute", "letters", 91.0, 91.5, {"requests": 1}),
    Span(0, "request", "letters", 89.0, 92.0, {"request": "r", "tenant": "bank", "first_token_s": 91.5}),
]


async def test_status_tells_who_used_the_pool() -> None:
    async with serving(FakeEntry(facts("letters"))) as served, AsyncClient(served.target) as client:
        before = await client.pool.status()
        assert (before.tenants, before.devices_saved) == ((), 0.0)
        for message in (node_status("letters"), node_use("letters", tenants=("shop", "bank"))):
            version = served.front.changes.version
            served.hub.post(message)
            await served.front.changes.after(version)
        status = await client.pool.status()
        assert (status.devices_saved, status.devices_saved_dedicated) == (35.0 / 10.0 - 1, 4)
        assert (status.work_s, status.model_work_s, status.n_models_used) == (10.0, 35.0, 5)
        (instance,) = status.instances
        assert (instance.work_s, instance.model_work_s) == (9.5, 34.0)
        assert [tenant.name for tenant in status.tenants] == ["bank", "shop"]
        bank = status.tenants[0].service
        assert (bank.n_requests, bank.n_tokens_on_time, bank.gpu_s) == (2000, 2005, 2000.5)
        assert bank.artifact_attainment == 0.5
        (model,) = status.models
        swaps = (model.n_swaps_first, model.n_swaps_again, model.n_swaps_operator, model.n_swaps_ahead)
        assert swaps == (51, 52, 53, 54)
        assert model.service.n_requests == 100
        places = [
            durations.counts.index(max(durations.counts)) for durations in (bank.ttft, bank.tpot, bank.gaps)
        ]
        assert places == [12, 13, 14]
        assert bank.gaps.percentile(0.99, status.duration_bounds_s) == status.duration_bounds_s[14]


async def test_use_begins_anew_with_a_new_node() -> None:
    async with serving(FakeEntry(facts("letters"))) as served:
        served.hub.post(node_use("letters"))
        version = served.front.changes.version
        await served.front.changes.after(version)
        assert served.front.node.usage.tenants
        served.hub.post(Broken("a cosmic ray"))
        await served.front.changes.after(served.front.changes.version)
        assert not served.front.node.usage.tenants


async def test_a_trace_is_a_document_for_perfetto() -> None:
    async with serving(FakeEntry(facts("letters"))) as served, AsyncClient(served.target) as client:
        served.hub.spans = list(SPANS)
        trace = await client.pool.trace()
        assert (trace.n_spans, trace.seconds) == (3, 1.5)
        kinds = [event["ph"] for event in json.loads(trace.chrome_trace)["traceEvents"]]
        assert kinds == ["M", "M", "M", "M", "X", "X", "b", "n", "e"]
        newest = await client.pool.trace(last_s=8.2)
        assert newest.n_spans == 1
        with pytest.raises(CallFailed) as refused:
            await client.pool.trace(last_s=-1)
        assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_trace_of_a_node_that_dies_is_told_at_once() -> None:
    hub = ScriptedNodes()
    hub.answer_traces = False
    front, _ = make_front(hub)
    with pytest.raises(Unavailable):
        await front.trace(1.0)
    await front.start()
    asking = asyncio.create_task(front.trace(1.0))
    await hub.next(AskTrace)
    hub.post(Broken("a cosmic ray"))
    with pytest.raises(Unavailable, match="is being restarted"):
        await asyncio.wait_for(asking, PATIENCE_S)
    await front.close()


async def test_traffic_is_recorded_and_told_without_a_word_of_text() -> None:
    recorder = TrafficRecorder(10, start_s=40.0)
    async with serving(recorder=recorder) as served, AsyncClient(served.target) as client:
        await client.generate("letters", "abc", max_tokens=5, tenant="bank", ttft_s=2.0, weight=2.0)
        (told,) = await client.planning.recorded_traffic()
        assert astuple(told) == (60.0, "letters", 3, 5, "bank", 2.0, 0.1, 2.0, (), 0)
        (line,) = recorder.recorded(0.0, 100.0)
        assert line == TraceRequest(60.0, "letters", 3, 5, "bank", 2.0, 0.1, 2.0)


async def test_much_traffic_comes_in_several_messages() -> None:
    n = 2 * MAX_BATCH + 1
    recorder = TrafficRecorder(n, start_s=0.0)
    for number in range(n):
        request = Request(RequestId("r"), ModelId("m"), 1, 1, float(number % 50))
        recorder.ended(Submit(request, (0,), Sampling()), 1)
    async with serving(recorder=recorder) as served, AsyncClient(served.target) as client:
        told = await client.planning.recorded_traffic()
        assert [line.arrival_s for line in told] == sorted(float(number % 50) for number in range(n))
        late = await client.planning.recorded_traffic(last_s=51.5)
        assert {line.arrival_s for line in late} == {49.0}


async def test_a_plan_from_a_server_knows_which_prompts_begin_alike() -> None:
    def prefix_of(submit: Submit) -> Prefix:
        cells = (submit.prompt[at : at + 2] for at in range(0, len(submit.prompt) - 1, 2))
        return Prefix(submit.request.model, 2, tuple(PrefixKey(bytes(cell)) for cell in cells))

    recorder = TrafficRecorder(10, 0.0, prefix_of=prefix_of)
    async with serving(recorder=recorder) as served, AsyncClient(served.target) as client:
        for prompt in ("abcd", "abxy", "a"):
            await client.generate("letters", prompt, max_tokens=1)
        told = await client.planning.recorded_traffic()
    lines = [trace_line(one) for one in told]
    first, second, short = (line.hash_ids for line in lines)
    assert (len(first), len(second), short) == (2, 2, ())
    assert first[0] == second[0] != first[1] != second[1]
    assert lines[:2] == recorder.recorded(0.0, 100.0)[:2]
    found = arrivals(lines, {ModelId("letters"): 99}, cell_tokens=2)
    assert [arrival.request.prefix is not None for arrival in found] == [True, True, False]


def test_many_hashes_do_not_make_a_message_too_large() -> None:
    line = TraceRequest(0.0, "m", 1, 1, hash_ids=(7,) * (MAX_BATCH_HASHES // 2 - 1))
    assert [len(batch) for batch in batches([line] * 5)] == [2, 2, 1]
    long = TraceRequest(0.0, "m", 1, 1, hash_ids=(7,) * (MAX_BATCH_HASHES + 1))
    assert [len(batch) for batch in batches([long] * 2)] == [1, 1]


async def test_a_server_that_records_nothing_says_how_to_change_that() -> None:
    async with serving(FakeEntry(facts("letters"))) as served, AsyncClient(served.target) as client:
        with pytest.raises(CallFailed, match=r"set `record_traffic\.window` above 0") as refused:
            await client.planning.recorded_traffic()
        assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_catalogue_has_all_sizes() -> None:
    async with serving(FakeEntry(facts("b")), FakeEntry(facts("a", 4321))) as served:
        async with AsyncClient(served.target) as client:
            first, second = await client.planning.catalogue()
        assert (first.name, first.weight_bytes, second.name) == ("a", 4321, "b")
        shape = (first.n_layers, first.n_kv_heads, first.head_dim, first.dtype_bytes)
        assert shape == (2, 1, 8, 2)
        assert (first.n_parameters, first.max_context, first.vocab_size) == (500, 64, 256)


async def test_planning_and_traces_need_an_admin_key() -> None:
    keys = (Key.of("team", Scope.INFERENCE, "sesame"), Key.of("boss", Scope.ADMIN, "open"))
    async with serving(keys=keys, recorder=TrafficRecorder(1, 0.0)) as served:
        for secret, code in ((None, "UNAUTHENTICATED"), ("sesame", "PERMISSION_DENIED"), ("open", None)):
            async with AsyncClient(served.target, api_key=secret) as client:
                for call in (client.planning.catalogue, client.planning.recorded_traffic, client.pool.trace):
                    if code is None:
                        await call()
                        continue
                    with pytest.raises(CallFailed) as refused:
                        await call()
                    assert refused.value.code.name == code


@pytest.mark.parametrize(
    ("code", "raised"),
    [(ErrorCode.IN_USE, InUse), (ErrorCode.DOES_NOT_FIT, DoesNotFit), (None, NotServable)],
)
async def test_an_error_of_the_node_keeps_its_class(code: ErrorCode | None, raised: type[Exception]) -> None:
    commands = PendingCommands(lambda command: Ticket(5))
    answer = commands.begin(Load(facts("m").id))
    commands.answered(Acknowledged(Ticket(5), "no", code))
    with pytest.raises(raised, match="no") as failure:
        await answer
    assert type(failure.value) is raised


async def test_answers_find_their_commands_in_whatever_order_they_come() -> None:
    """A node may answer a slow resize after what was sent later, and two commands about one model."""
    tickets = itertools.count(1)
    commands = PendingCommands(lambda command: Ticket(next(tickets)))
    resize, first, second = (commands.begin(c) for c in (Resize(1), Load(ModelId("m")), Load(ModelId("m"))))
    trace = asyncio.ensure_future(commands.trace(1.0))
    await asyncio.sleep(0)
    commands.answered(Acknowledged(Ticket(3)))
    assert (resize.done(), first.done(), second.done()) == (False, False, True)
    commands.answered(Traced(Ticket(4), ()))
    commands.answered(Acknowledged(Ticket(2), "no"))
    commands.answered(Acknowledged(Ticket(9), "of a command that was given up"))
    assert await trace == ()
    with pytest.raises(NotServable, match="no"):
        await first
    assert not resize.done()
    commands.fail(ProcessFailed("it broke"))
    with pytest.raises(ProcessFailed):
        await resize


async def test_a_command_that_cannot_be_sent_fails_and_nothing_else() -> None:
    def refuse(command: Command) -> Ticket:
        raise NotServable("too large for a frame")

    with pytest.raises(NotServable, match="too large"):
        await PendingCommands(refuse).begin(Load(ModelId("m")))
