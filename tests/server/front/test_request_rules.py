"""What is refused before anything is done for it: numbers, names and amounts that a client may bring."""

import re
from dataclasses import fields
from math import isfinite
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.harness import serving
from tests.server.scripted_models import CONTEXT, FakeEntry, facts
from tokenmux.core.errors import InvalidRequest
from tokenmux.core.sizes import parse_size
from tokenmux.server.front.counts import check_token_ids
from tokenmux.server.front.generation import Ask, Text, TokenIds
from tokenmux.server.front.names import closest, tenant_fault
from tokenmux.server.front.request_rules import (
    MAX_CHAT_MESSAGES,
    Defaults,
    check_parameters,
    service_level,
)
from tokenmux.server.front.sampling_rules import logit_rules
from tokenmux.server.grpc_api.ask_messages import ask_of
from tokenmux.v1 import inference_pb2, models_pb2

PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
NUMBERS = ("temperature", "top_p", "min_p", *PENALTIES, "ttft_s", "tpot_s", "timeout_s", "weight")
FLOATS = st.floats() | st.sampled_from([5e-324, 1e-38, 1e308, float("nan"), float("inf"), -0.0])


@given(st.fixed_dictionaries(dict.fromkeys(NUMBERS, FLOATS)), st.integers(), st.integers(), st.integers())
def test_a_number_is_refused_or_within_its_bounds(
    numbers: dict[str, float], top_k: int, seed: int, max_tokens: int
) -> None:
    kinds = (float, float | None)
    assert set(NUMBERS) == {field.name for field in fields(Ask) if field.type in kinds}
    ask = Ask("m", Text("a"), top_k=top_k, seed=seed, max_tokens=max_tokens, **numbers)
    try:
        check_parameters(ask, facts("m"))
    except InvalidRequest:
        return
    level = service_level(ask, Defaults())
    assert all(isfinite(number) for number in numbers.values())
    assert 0.001 <= level.ttft_s <= 86_400
    assert 0.001 <= level.tpot_s <= 86_400
    assert ask.timeout_s is not None
    assert 0.001 <= ask.timeout_s <= 86_400
    assert 0.01 <= ask.weight <= 100
    assert 0 <= ask.min_p <= 1
    assert ask.repetition_penalty >= 0.001
    assert max(abs(ask.frequency_penalty), abs(ask.presence_penalty)) <= 2


NAN = float("nan")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"min_p": 1.01}, "min_p 1.01 is out of range: use 0"),
        ({"min_p": NAN}, "min_p nan is out of range"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0 is out of range: use 0.001 to 10"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty inf is out of range"),
        ({"frequency_penalty": -2.1}, "frequency_penalty -2.1 is out of range: use -2 to 2"),
        ({"presence_penalty": NAN}, "presence_penalty nan is out of range: use -2 to 2"),
        ({"logit_bias": ((256, 1.0),)}, "logit_bias: 256 at index 0 is out of range: letters has token ids"),
        ({"logit_bias": ((7, 101.0),)}, "logit_bias 101 of token 7 is out of range: use -100 to 100"),
        ({"logit_bias": ((7, NAN),)}, "logit_bias nan of token 7"),
        ({"logit_bias": ((7, 1.0), (7, 2.0))}, "logit_bias names a token twice"),
        ({"logit_bias": tuple((i, 0.0) for i in range(1025))}, "1025 tokens in logit_bias: at most 1024"),
        ({"forbidden_token_ids": (1, 256)}, "forbidden_token_ids: 256 at index 1 is out of range"),
        ({"forbidden_token_ids": (1,) * 1025}, "1025 forbidden_token_ids: at most 1024"),
        ({"logprobs": 21}, "logprobs 21 is out of range: use 0 (that token alone) to 20"),
        ({"prompt_logprobs": 21}, "prompt_logprobs 21 is out of range: use 0 (that token alone) to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs -1 is out of range"),
        ({"bad_words": ("a", " ")}, "a string of bad_words is empty: leave it out"),
        ({"bad_words": ("a" * 257,)}, "a string of bad_words has 257 characters: at most 256"),
        ({"bad_words": ("a",) * 65}, "65 bad_words: at most 64"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_the_name_of_its_field(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        check_parameters(Ask("m", Text("a"), **asked), facts("letters"))


def test_a_vocabulary_cannot_be_forbidden_as_a_whole() -> None:
    ask = Ask("m", Text("a"), forbidden_token_ids=tuple(range(1, 256)))
    rules = logit_rules(ask, (), facts("letters"))
    assert rules is not None
    assert len(rules.forbidden) == 255
    with pytest.raises(InvalidRequest, match="forbidden_token_ids and bad_words forbid all 256 tokens"):
        logit_rules(ask, ((0,),), facts("letters"))


def test_who_asks_for_no_rules_gets_none() -> None:
    assert logit_rules(Ask("m", Text("a")), (), facts("letters")) is None


@pytest.mark.parametrize("level", [{"tpot_s": 1e308}, {"tpot_s": 1e305}, {"ttft_s": 5e-324}, {"ttft_s": 1e9}])
def test_service_levels_beyond_a_day_or_below_a_millisecond_are_refused(level: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest, match=r"use seconds, 0\.001 to 86400"):
        check_parameters(Ask("m", Text("a"), **level), facts("m"))


@pytest.mark.parametrize(
    "tenant",
    [
        "(pool)",
        "(others)",
        "(",
        "[/b]",
        "-rf",
        "\x1b]0;owned\x07",
        "a\nb",
        "a\u202eb",
        "\x9b31m",
        " a",
        "x" * 65,
        "\ue000",
    ],
)
def test_tenants_of_our_own_and_unprintable_ones_are_refused(tenant: str) -> None:
    with pytest.raises(InvalidRequest, match="tenant"):
        check_parameters(Ask("m", Text("a"), tenant=tenant), facts("m"))


@given(st.text())
def test_an_accepted_tenant_can_be_printed_anywhere(tenant: str) -> None:
    if tenant_fault(tenant) is None:
        assert tenant.isprintable()
        assert not tenant.startswith(("(", "[", "-", "=", "<"))
        assert len(tenant) <= 64


@pytest.mark.parametrize("tenant", ["", "team", "Zürich 7", "_x", "a(b)", "me@example.org", "会社"])
def test_other_tenants_are_welcome(tenant: str) -> None:
    check_parameters(Ask("m", Text("a"), tenant=tenant), facts("m"))


class Counted(tuple[int, ...]):
    """Token ids that tell whether somebody looked at them one by one."""

    looked_at = False

    def __iter__(self):  # type: ignore[no-untyped-def]
        type(self).looked_at = True
        return super().__iter__()


def test_too_many_token_ids_are_refused_by_their_number() -> None:
    ids = Counted([999] * (CONTEXT + 1))
    with pytest.raises(InvalidRequest, match=f"at most {CONTEXT - 1} tokens"):
        check_parameters(Ask("m", TokenIds(ids)), facts("m"))
    assert not Counted.looked_at


def test_the_first_id_that_is_not_in_the_vocabulary_is_named() -> None:
    with pytest.raises(InvalidRequest, match="256 at index 2 is out of range"):
        check_token_ids("ids", (1, 255, 256, -1), facts("m"))
    check_token_ids("ids", (), facts("m"))


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (
            inference_pb2.GenerateRequest(text="a", stopping={"strings": [""] * 100_000}),
            "100000 stop strings",
        ),
        (inference_pb2.GenerateRequest(text="a", stopping={"token_ids": [1] * 100_000}), "stop token ids"),
        (
            inference_pb2.GenerateRequest(chat={"messages": [{}] * (MAX_CHAT_MESSAGES + 1)}),
            "4097 chat messages: at most 4096",
        ),
    ],
)
def test_amounts_are_refused_before_they_are_converted(
    request_: inference_pb2.GenerateRequest, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        ask_of(request_)


@pytest.mark.parametrize("size", ["9" * 400, "9" * 5000, "1e400", "inf", "nan", "-1", "9" * 41, ""])
def test_what_is_not_a_size_is_a_value_error(size: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_size(size)
    assert len(str(caught.value)) < 200


def test_sizes_are_exact() -> None:
    assert parse_size("9007199254740993") == 9007199254740993
    assert parse_size("1.5GiB") == 3 << 29


async def test_a_model_name_that_no_model_can_have_costs_nothing_in_any_call() -> None:
    """A name of 4 MB was compared with every name that is served, on the event loop: 0.9 s each."""

    name = "x" * 3_000_000
    async with serving(FakeEntry(facts("letters"))) as served:
        calls = [
            served.inference.Generate(inference_pb2.GenerateRequest(model=name, text="a")),
            served.inference.Tokenize(inference_pb2.TokenizeRequest(model=name, text="a")),
            served.inference.ModelMetadata(inference_pb2.ModelMetadataRequest(model=name)),
            served.inference.ModelReady(inference_pb2.ModelReadyRequest(model=name)),
            served.models.GetModel(models_pb2.GetModelRequest(name=name)),
            served.models.LoadModel(models_pb2.LoadModelRequest(name=name)),
            served.models.UnloadModel(models_pb2.UnloadModelRequest(name=name)),
            served.models.PinModel(models_pb2.PinModelRequest(name=name)),
            served.models.UnregisterModel(models_pb2.UnregisterModelRequest(name=name)),
            served.models.RegisterModel(models_pb2.RegisterModelRequest(name=name, source="/x")),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "a model name of 3000000 characters" in (caught.value.details() or "")


@given(
    st.lists(st.text("abc-", min_size=1, max_size=20), max_size=40, unique=True), st.text("abc-", max_size=20)
)
def test_the_closest_names_are_of_those_that_exist(names: list[str], name: str) -> None:
    found = closest(name, names)
    assert len(found) <= 3
    assert set(found) <= set(names)


def test_a_slip_of_the_finger_is_recognised_among_many() -> None:
    names = [f"model-{i:04}" for i in range(1000)]
    assert "qwen2.5-7b" in closest("qwen25-7b", [*names, "qwen2.5-7b"])
    assert "model-0123" in closest("modle-0123", names)
