"""Errors and their codes: what says "try again" may succeed unchanged, and nothing else says so."""

import asyncio
from collections.abc import Iterator
from typing import cast

import grpc
import pytest

from tests.server.scripted_models import LetterTokenizer, facts
from tokenmux.client import CallFailed
from tokenmux.core import errors
from tokenmux.core.errors import ErrorCode, InternalError, TokenmuxError, error_of
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.server.front.buffer import EventBuffer
from tokenmux.server.front.live_request import LiveRequest
from tokenmux.server.grpc_api.grpc_types import Context
from tokenmux.server.grpc_api.status import STATUS, answering, refusal_of

Code = grpc.StatusCode


def tree(root: type[TokenmuxError] = TokenmuxError) -> Iterator[type[TokenmuxError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from tree(kind)


@pytest.mark.parametrize("kind", list(tree()))
def test_a_code_says_try_again_exactly_where_that_may_help(kind: type[TokenmuxError]) -> None:
    code = STATUS[kind.code]
    assert CallFailed(code, "a reason").retryable == kind.retryable
    assert kind.__name__ in (errors.__doc__ or "")
    refusal = refusal_of(kind("a reason"))
    shown, message = refusal.code, refusal.message
    assert shown is code
    assert (kind.usual_retry_s is not None) == kind.retryable
    assert (shown is Code.INTERNAL) == issubclass(kind, InternalError)
    assert ("a reason" in message) == (shown is not Code.INTERNAL)
    assert type(error_of(kind.code, "a reason")) is kind


async def test_a_message_that_cannot_be_sent_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with answering(cast("Context", None)):
            raise grpc.aio.InternalError("the client has gone")
    assert not caplog.records


def test_an_error_of_ours_is_not_internal_without_being_one() -> None:
    refusal = refusal_of(TokenmuxError("/models: cannot be written (Read-only file system)"))
    assert refusal.code is Code.FAILED_PRECONDITION
    assert "Read-only" in refusal.message


def test_a_message_that_is_too_large_stays_so() -> None:
    too_large = CallFailed(Code.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (5 vs. 4)")
    assert not too_large.retryable
    assert CallFailed(Code.RESOURCE_EXHAUSTED, "the queue is full").retryable


def live(buffer: EventBuffer) -> LiveRequest:
    submit = Submit(Request(RequestId("r"), facts("m").id, 1, 9, 0.0), (1,), Sampling())
    detokenizer = LetterTokenizer().detokenizer((), prompt=(), skip_special_tokens=True)
    return LiveRequest(submit, detokenizer, buffer, lambda: 0.0)


def buffer() -> EventBuffer:
    return EventBuffer(9, lambda: None, lambda: None)


@pytest.mark.parametrize(
    ("said", "code"), [(ErrorCode.BAD_CHECKPOINT, Code.FAILED_PRECONDITION), (None, Code.ABORTED)]
)
async def test_a_request_that_failed_has_the_code_of_its_reason(
    said: ErrorCode | None, code: grpc.StatusCode
) -> None:
    """Weights that are gone were ABORTED: a client that obeys tries again for ever."""
    events = buffer()
    request = live(events)
    request.take_finished(Finished(request.id, FinishReason.FAILED, 0.0, "the image is gone", said))
    with pytest.raises(TokenmuxError, match="the image is gone") as caught:
        [event async for event in events]
    assert refusal_of(caught.value).code is code


def test_tokens_after_the_client_left_are_no_fault() -> None:
    request = live(buffer())
    request.take_tokens(Tokens(request.id, 0, (65,), 0.0))
    request.fail(TokenmuxError("its client left"))
    assert not request.take_tokens(Tokens(request.id, 1, (66,), 0.0))
    assert not request.take_tokens(Tokens(request.id, 2, (67,), 0.0))
