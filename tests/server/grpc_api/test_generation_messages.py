"""Messages of a generation become questions of the front, and what is wrong in them has the name of its
field."""

import re
from collections.abc import AsyncIterator

import pytest

from tests.server.scripted_models import facts
from tokenmux.client.errors import WrongArgument
from tokenmux.client.generation_requests import generate_request
from tokenmux.core.errors import InvalidRequest
from tokenmux.core.request import FinishReason
from tokenmux.server.front.generation import Ask, Chat, ChatMessage, FinishInfo, Text
from tokenmux.server.front.request_rules import check_parameters
from tokenmux.server.grpc_api.answer_messages import whole_response
from tokenmux.server.grpc_api.ask_messages import ask_of
from tokenmux.server.grpc_api.chat_messages import chat_of
from tokenmux.server.grpc_api.field_paths import path_of
from tokenmux.v1 import inference_pb2

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "It"}


def test_every_option_of_the_client_arrives() -> None:
    request = generate_request(
        "m",
        "a",
        temperature=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={7: -100, 3: 0.5},
        forbidden_token_ids=[1],
        bad_words=["b"],
        n=3,
        logprobs=0,
        prompt_logprobs=2,
        include_stop_string=True,
        echo=True,
        keep_special_tokens=True,
        truncate_prompt_tokens=9,
        request_id="mine",
        seed=1,
        prefix_cache=False,
        cache_salt="pepper",
    )
    assert ask_of(inference_pb2.GenerateRequest.FromString(request.SerializeToString())) == Ask(
        "m",
        Text("a"),
        temperature=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias=((3, 0.5), (7, -100.0)),
        forbidden_token_ids=(1,),
        bad_words=("b",),
        n=3,
        logprobs=0,
        prompt_logprobs=2,
        include_stop_string=True,
        echo=True,
        skip_special_tokens=False,
        truncate_prompt_tokens=9,
        request_id="mine",
        seed=1,
        prefix_cache=False,
        cache_salt="pepper",
    )


def test_what_is_not_asked_for_is_the_default() -> None:
    assert ask_of(generate_request("m", "a")) == Ask("m", Text("a"))
    assert ask_of(generate_request("m", "a", n=0)) == Ask("m", Text("a"), n=0)


@pytest.mark.parametrize(("salt", "n_chars"), [("", 0), ("x" * 257, 257)])
def test_a_salt_that_isolates_nothing_is_refused_by_its_field(salt: str, n_chars: int) -> None:
    """An empty one may be the id of a user that is missing."""
    with pytest.raises(InvalidRequest, match=rf"has {n_chars} characters: use 1 to 256") as caught:
        check_parameters(ask_of(generate_request("m", "a", cache_salt=salt)), facts("m"))
    assert path_of(caught.value) == "prefix_cache.salt"


async def test_of_several_outputs_the_least_counts_as_cached() -> None:
    async def events() -> AsyncIterator[FinishInfo]:
        for choice, n_cached in enumerate((32, 16, 48)):
            yield FinishInfo(
                FinishReason.LENGTH, None, None, 64, 1, 1, 0.0, 0.0, 0.0, 7, choice=choice, n_cached=n_cached
            )

    response = await whole_response(events())
    each = [choice.finish_info.usage.n_cached_prompt_tokens for choice in response.choices]
    assert (each, response.usage.n_cached_prompt_tokens) == ([32, 16, 48], 16)


def test_what_a_template_is_given_arrives() -> None:
    request = generate_request(
        "m",
        [USER, ASSISTANT],
        tools=[{"type": "function"}],
        documents=[{"title": "a"}],
        chat_template_kwargs={"enable_thinking": False},
        continue_final_message=True,
    )
    assert ask_of(request).prompt == Chat(
        (ChatMessage("user", "hi"), ChatMessage("assistant", "It")),
        ({"type": "function"},),
        ({"title": "a"},),
        {"enable_thinking": False},
        True,
    )


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ({"tools": ["[]"]}, "tools is not a JSON object: write {...}"),
        ({"tools": ["{"]}, "tools is not JSON"),
        ({"tools": ["[" * 60_000]}, "tools is not JSON"),
        ({"documents": ["x" * 70_000]}, "documents has 70000 characters: at most 65536"),
        ({"tools": ["{}"] * 129}, "129 tools: at most 128"),
        ({"template_arguments_json": "1"}, "template_arguments_json is not a JSON object"),
        ({"template_arguments_json": '{"tools": 1}'}, "template argument 'tools' cannot be given"),
        ({"template_arguments_json": '{"a b": 1}'}, "template argument 'a b' cannot be given"),
        ({"continue_final_message": True}, "continue_final_message continues a message of the assistant"),
    ],
)
def test_what_a_template_cannot_be_given_is_refused(chat: dict[str, object], said: str) -> None:
    request = inference_pb2.GenerateRequest(model="m", chat={"messages": [USER], **chat})
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        check_parameters(ask_of(request), facts("m"))


def test_a_client_gives_tools_with_messages_only() -> None:
    with pytest.raises(WrongArgument, match="are for conversations: give messages"):
        generate_request("m", "text", tools=[{}])
    with pytest.raises(WrongArgument, match=r"tools: .* cannot be sent"):
        generate_request("m", [USER], tools=[{"a": object()}])
    with pytest.raises(TypeError, match="bad_words: 'abc' is a single text"):
        generate_request("m", "text", bad_words="abc")


def test_calls_in_a_message_are_counted_before_they_are_read() -> None:
    call = inference_pb2.ToolCall(name="f", arguments="not JSON")
    message = inference_pb2.ChatMessage(role="assistant", tool_calls=[call] * 1025)
    with pytest.raises(InvalidRequest, match=r"1025 calls in messages\[0\]: at most 1024"):
        chat_of(inference_pb2.Chat(messages=[message]))
