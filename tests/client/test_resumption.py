"""Streams that lose their server go on, and their callers notice nothing."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from random import Random

import grpc
import pytest

from tests.server.harness import PATIENCE_S, Served, ServerThread, serving
from tests.server.scripted_models import LetterDetokenizer
from tokenmux.client import AsyncClient, CallFailed, Client, Delta, Finish, GenerationEvent, PromptInfo
from tokenmux.client.generation_requests import stream_request
from tokenmux.client.resumption import GenerationProgress, Resumption
from tokenmux.messages.commands import Cancel, Submit
from tokenmux.messages.reports import Tokens
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.testing.scripted_node import scripted_output
from tokenmux.v1 import inference_pb2

AT_ONCE = Resumption(n_tries=5, first_wait_s=0.0)
LOST = CallFailed(grpc.StatusCode.UNAVAILABLE, "Socket closed")
Response = inference_pb2.GenerateStreamResponse

# How far a stream is, without a server


def answer(
    request: inference_pb2.GenerateRequest, output: Sequence[int], chance: Random
) -> Iterator[inference_pb2.GenerateStreamResponse]:
    """What any server answers: the rest of the output, in pieces as they happen to be."""
    held = list(request.delivered[0].token_ids) if request.delivered else []
    assert held == list(output[: len(held)])
    text = LetterDetokenizer(request.stopping.strings, 1)
    text.push(held)
    yield Response(prompt_info=inference_pb2.PromptInfo(request_id="r", seed=5, max_tokens=len(output)))
    if request.output.echo and not held:
        yield Response(tokens=inference_pb2.TokenDelta(text="ECHO"))
    at = len(held)
    while at < len(output) and text.stopped is None:
        ids = output[at : at + chance.randint(1, 4)]
        delta = inference_pb2.TokenDelta(index=at)
        for token in ids:
            delta.token_ids.append(token)
            delta.logprobs.add(logprob=-float(token))
            delta.text += text.push((token,))
            if text.stopped is not None:
                break
        at += len(ids)
        yield Response(tokens=delta)
        yield Response(state=inference_pb2.RequestState())
    rest = text.finish()
    if rest:
        yield Response(tokens=inference_pb2.TokenDelta(index=at, text=rest))
    yield Response(finish_info=inference_pb2.FinishInfo())


def heard(
    request: inference_pb2.GenerateStreamRequest, output: Sequence[int], seed: int, break_off: float
) -> tuple[list[int], str, list[float], int]:
    """What a caller gets whose server is lost again and again: tokens, text, log-probabilities, and how often
    there was a prompt or an end."""
    chance = Random(seed)
    progress = GenerationProgress(request, None, Resumption(n_tries=1000, first_wait_s=0.0))
    tokens: list[int] = []
    text, told, n_marks, done = "", [], 0, False
    while not done:
        for response in answer(progress.request.request, output, chance):
            if progress.take(response):
                match response.WhichOneof("event"):
                    case "tokens":
                        assert not response.tokens.token_ids or response.tokens.index == len(tokens)
                        tokens += response.tokens.token_ids
                        told += [one.logprob for one in response.tokens.logprobs]
                        text += response.tokens.text
                    case "prompt_info" | "finish_info":
                        n_marks += 1
            if response.HasField("finish_info"):
                done = True
            elif chance.random() < break_off and not response.HasField("prompt_info"):
                progress.wait_s(LOST)
                break
    return tokens, text, told, n_marks


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", [(), ("efgh",), ("zz",), ("e", "efg")])
def test_whatever_breaks_off_the_caller_gets_everything_once(stop: tuple[str, ...], echo: bool) -> None:
    output = [*b"abcdefghabzcdefzzzabc"]
    for seed in range(60):
        request = stream_request("m", "p", stop=stop, echo=echo, logprobs=0)
        whole = heard(request, output, seed, break_off=0.0)
        assert whole[3] == 2
        assert heard(request, output, seed, break_off=0.3) == whole


def test_of_several_choices_each_goes_on_where_it_was_and_one_that_ended_does_not() -> None:
    progress = GenerationProgress(stream_request("m", "p", n=3, prompt_logprobs=0), None, AT_ONCE)
    delta = inference_pb2.TokenDelta
    for response in (
        Response(prompt_info=inference_pb2.PromptInfo()),
        Response(prompt_logprobs=inference_pb2.PromptLogprobs(token_ids=[1, 2])),
        Response(tokens=delta(choice=0, token_ids=[7, 8], text="ab")),
        Response(tokens=delta(choice=1, token_ids=[9], text="c")),
        Response(tokens=delta(choice=0, index=2, token_ids=[5], text="d")),
        Response(finish_info=inference_pb2.FinishInfo(choice=1)),
    ):
        assert progress.take(response)
    progress.wait_s(LOST)
    request = progress.request.request
    delivered = [(list(held.token_ids), held.complete) for held in request.delivered]
    assert delivered == [([7, 8], False), ([], True), ([], False)]
    assert not request.HasField("prompt_logprobs"), "the caller has them all"


def test_of_the_prompt_nothing_is_told_twice() -> None:
    progress = GenerationProgress(stream_request("m", "p", prompt_logprobs=0), None, AT_ONCE)
    told: list[tuple[int, float | None]] = []

    def tell(start: int, end: int) -> None:
        message = inference_pb2.PromptLogprobs(index=start, token_ids=range(start, end))
        for token in range(max(start, 1), end):
            message.logprobs.add(logprob=-float(token))
        response = Response(prompt_logprobs=message)
        if progress.take(response):
            message = response.prompt_logprobs
            assert message.index == len(told)
            scores = [one.logprob for one in message.logprobs]
            told.extend(zip(message.token_ids, scores if message.index else [None, *scores], strict=True))

    progress.take(Response(prompt_info=inference_pb2.PromptInfo()))
    for start, end in ((0, 4), (4, 6)):
        tell(start, end)
    progress.wait_s(LOST)
    assert progress.request.request.HasField("prompt_logprobs")
    for start, end in ((0, 2), (2, 5), (5, 9)):
        tell(start, end)
    assert told == [(0, None), *((token, -float(token)) for token in range(1, 9))]


def test_the_prompt_is_asked_for_again_while_the_choice_that_tells_of_it_has_no_token() -> None:
    progress = GenerationProgress(stream_request("m", "p", n=2, prompt_logprobs=0), None, AT_ONCE)
    progress.take(Response(prompt_info=inference_pb2.PromptInfo(request_id="r")))
    progress.take(Response(tokens=inference_pb2.TokenDelta(token_ids=[7], choice=1)))
    progress.wait_s(LOST)
    assert progress.request.request.HasField("prompt_logprobs")
    progress.take(Response(tokens=inference_pb2.TokenDelta(token_ids=[7])))
    progress.wait_s(LOST)
    assert not progress.request.request.HasField("prompt_logprobs")


def begun(resumption: Resumption | None = AT_ONCE, timeout_s: float | None = None) -> GenerationProgress:
    progress = GenerationProgress(stream_request("m", "p"), timeout_s, resumption)
    progress.take(Response(prompt_info=inference_pb2.PromptInfo(request_id="r", seed=5, max_tokens=9)))
    return progress


def test_what_the_first_server_chose_is_told_to_the_next() -> None:
    progress = begun()
    progress.wait_s(LOST)
    request = progress.request.request
    assert (request.request_id, request.sampling.seed, request.stopping.max_tokens) == ("r", 5, 9)
    assert len(request.delivered) == 1
    assert list(request.required_features) == ["delivered"], "an older server would start over"


@pytest.mark.parametrize(
    "error",
    [
        CallFailed(grpc.StatusCode.INVALID_ARGUMENT, "no"),
        CallFailed(grpc.StatusCode.ABORTED, "cancelled"),
        CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full"),
        CallFailed(grpc.StatusCode.DEADLINE_EXCEEDED, "late"),
    ],
)
def test_what_is_no_loss_of_a_server_ends_the_stream(error: CallFailed) -> None:
    with pytest.raises(CallFailed) as caught:
        begun().wait_s(error)
    assert caught.value is error


def test_a_stream_that_was_never_accepted_is_not_tried_again() -> None:
    with pytest.raises(CallFailed):
        GenerationProgress(stream_request("m", "p"), None, AT_ONCE).wait_s(LOST)
    with pytest.raises(CallFailed):
        begun(None).wait_s(LOST)


def test_tries_are_bounded_and_the_error_is_that_of_the_loss() -> None:
    progress = begun()
    first = CallFailed(grpc.StatusCode.UNAVAILABLE, "the server stopped after 7 tokens")
    progress.wait_s(first)
    # What the successor may say until the old call is forgotten, or while others fill its queue.
    progress.wait_s(CallFailed(grpc.StatusCode.ALREADY_EXISTS, "it is live"))
    progress.wait_s(CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full"))
    progress.wait_s(LOST)
    progress.wait_s(LOST)
    with pytest.raises(CallFailed) as caught:
        progress.wait_s(LOST)
    assert caught.value is first


def test_a_token_makes_up_for_all_failures() -> None:
    progress = begun()
    for index in range(20):
        progress.wait_s(LOST)
        progress.take(Response(tokens=inference_pb2.TokenDelta(index=index, token_ids=[1], text="a")))


def test_waits_grow_to_their_limit() -> None:
    resumption = Resumption(n_tries=2000, first_wait_s=1.0, max_wait_s=8.0)
    waits = [resumption.wait_s(n_failed) for n_failed in range(1, 2000)]
    for wait_s, middle_s in zip(waits, [1.0, 2.0, 4.0, *[8.0] * 1996], strict=True):
        assert middle_s / 2 <= wait_s <= middle_s * 1.5
    assert len(set(waits)) > 1000, "clients of one server do not all come back at the same moment"


def test_the_deadline_is_for_all_of_it() -> None:
    progress = begun(timeout_s=3600.0)
    progress.wait_s(LOST)
    assert progress.left_s is not None
    assert 3590 < progress.left_s <= 3600
    with pytest.raises(CallFailed):
        begun(Resumption(first_wait_s=10_000.0, max_wait_s=10_000.0), timeout_s=3600.0).wait_s(LOST)


# Both clients against real servers


def target(*servers: Served) -> str:
    return "ipv4:" + ",".join(server.target for server in servers)


async def said(server: Served, tokens: Tokens) -> None:
    server.hub.post(tokens)


def summary(events: Sequence[GenerationEvent]) -> tuple[tuple[int, ...], str, int, int]:
    """Tokens, text, and the numbers of prompts and of ends."""
    deltas = [event for event in events if isinstance(event, Delta)]
    tokens = tuple(token for delta in deltas for token in delta.token_ids)
    assert [delta.index for delta in deltas if delta.token_ids][:1] == [0]
    n_prompts = sum(isinstance(event, PromptInfo) for event in events)
    n_ends = sum(isinstance(event, Finish) for event in events)
    return tokens, "".join(delta.text for delta in deltas), n_prompts, n_ends


async def test_an_async_stream_goes_on_at_the_next_server() -> None:
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as first_stack, serving() as second:
        first = await first_stack.enter_async_context(serving(auto=False))
        async with AsyncClient(target(first, second), resumption=AT_ONCE) as client:
            events: list[GenerationEvent] = []
            async for event in client.stream("letters", "abc", max_tokens=12, temperature=1.0, echo=True):
                events.append(event)
                if isinstance(event, PromptInfo):
                    submit = await first.hub.next(Submit)
                    first.hub.post(Tokens(submit.request.id, 0, tuple(b"defgh"), 100.0))
                elif isinstance(event, Delta) and first.hub.nodes[0].closed is False:
                    await first_stack.aclose()
        assert summary(events) == (tuple(b"defghijklmno"), "abcdefghijklmno", 1, 1)
        again = await second.hub.next(Submit)
        assert again.sampling == submit.sampling, "the seed that the first server drew"
        assert again.request.id.partition("/")[0] == submit.request.id.partition("/")[0]
        end = events[-1]
        assert isinstance(end, Finish)
        assert (end.n_completion_tokens, end.n_resumed_tokens) == (12, len(again.delivered))


def test_a_blocking_stream_goes_on_at_the_next_server() -> None:
    first = ServerThread(lambda: serving(auto=False))
    with ServerThread(serving) as second:
        with first:
            stops = target(first.served, second.served)
            client = Client(stops, resumption=AT_ONCE)
            stream = iter(client.stream("letters", "abc", max_tokens=12, stop="gh"))
            events = [next(stream)]
            submit = first.do(first.served.hub.next(Submit))
            first.do(said(first.served, Tokens(submit.request.id, 0, tuple(b"defg"), 100.0)))
            events.append(next(stream))
        events += stream
        client.close()
    assert summary(events) == (tuple(b"defgh"), "def", 1, 1)


async def test_a_whole_answer_that_was_lost_is_asked_for_again_as_it_was() -> None:
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as first_stack, serving() as second:
        first = await first_stack.enter_async_context(serving(auto=False))
        async with AsyncClient(target(first, second), resumption=AT_ONCE) as client:
            answering = asyncio.ensure_future(
                client.generate("letters", "abc", max_tokens=12, temperature=1.0, prompt_logprobs=0)
            )
            submit = await first.hub.next(Submit)
            await first_stack.aclose()
            answer = await answering
        assert (answer.text, answer.finish.n_completion_tokens) == ("defghijklmno", 12)
        assert answer.prompt_logprobs is not None
        again = await second.hub.next(Submit)
        assert again.sampling == submit.sampling, "the seed that the first server drew"
        assert again.request.id.partition("/")[0] == submit.request.id.partition("/")[0]


def test_the_blocking_client_asks_for_a_whole_answer_again() -> None:
    first = ServerThread(lambda: serving(auto=False))
    with ServerThread(serving) as second, ThreadPoolExecutor(1) as thread:
        with first:
            client = Client(target(first.served, second.served), resumption=AT_ONCE)
            answering = thread.submit(client.generate, "letters", "abc", max_tokens=5)
            submit = first.do(first.served.hub.next(Submit))
        assert answering.result(PATIENCE_S).text == "defgh"
        client.close()
        assert second.do(second.served.hub.next(Submit)).sampling == submit.sampling


async def test_a_whole_answer_of_which_no_server_has_heard_is_not_asked_for_again() -> None:
    patient = Resumption(first_wait_s=3600.0, max_wait_s=3600.0)
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as stack:
        only = await stack.enter_async_context(serving(auto=False))
        async with (
            AsyncClient(only.target, resumption=patient) as client,
            AsyncClient(only.target, resumption=None) as other,
        ):
            answering = asyncio.ensure_future(other.generate("letters", "abc"))
            await only.hub.next(Submit)
            await stack.aclose()
            with pytest.raises(CallFailed, match="the server stopped after 0 tokens"):
                await answering
            with pytest.raises(CallFailed):
                await client.generate("letters", "abc")


async def test_a_stream_that_is_not_to_go_on_ends() -> None:
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as first_stack, serving() as second:
        first = await first_stack.enter_async_context(serving(auto=False))
        async with AsyncClient(target(first, second), resumption=None) as client:
            events = aiter(client.stream("letters", "abc"))
            await anext(events)
            await first.hub.next(Submit)
            await first_stack.aclose()
            with pytest.raises(CallFailed, match="the server stopped after 0 tokens"):
                await anext(events)


async def test_a_stream_that_is_cancelled_while_it_waits_for_a_server_ends() -> None:
    patient = Resumption(first_wait_s=3600.0, max_wait_s=3600.0)
    async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as stack:
        only = await stack.enter_async_context(serving(auto=False))
        async with AsyncClient(only.target, resumption=patient) as client:
            stream = client.stream("letters", "abc")
            events = aiter(stream)
            await anext(events)
            await stack.aclose()
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            stream.cancel()
            with pytest.raises(CallFailed):
                await waiting


# Cancelling by an id


def test_a_request_is_cancelled_by_its_id() -> None:
    keys = [Key.of("team", Scope.INFERENCE, "a"), Key.of("others", Scope.INFERENCE, "b")]
    with (
        ServerThread(lambda: serving(auto=False, keys=keys)) as server,
        Client(server.served.target, api_key="a") as client,
        Client(server.served.target, api_key="b") as others,
    ):
        stream = iter(client.stream("letters", "abc", request_id="mine"))
        next(stream)
        with pytest.raises(CallFailed) as caught:
            others.cancel("mine")
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        client.cancel("mine")
        with pytest.raises(CallFailed, match="request mine was cancelled by its id") as caught:
            list(stream)
        assert caught.value.code is grpc.StatusCode.ABORTED
        server.do(server.served.hub.next(Cancel))


async def test_an_async_client_cancels_as_well() -> None:
    async with (
        asyncio.timeout(PATIENCE_S),
        serving(auto=False) as served,
        AsyncClient(served.target) as client,
    ):
        call = asyncio.ensure_future(client.generate("letters", "abc", request_id="mine"))
        await served.hub.next(Submit)
        await client.cancel("mine")
        with pytest.raises(CallFailed, match="was cancelled by its id"):
            await call


def test_the_scripted_output_is_what_these_tests_expect() -> None:
    with ServerThread(serving) as server, Client(server.served.target) as client:
        assert client.generate("letters", "abc", max_tokens=3).token_ids == tuple(b"def")
        submit = server.do(server.served.hub.next(Submit))
        assert scripted_output(submit) == [*b"def"]
