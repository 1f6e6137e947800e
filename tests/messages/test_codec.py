"""Commands and reports survive the way between processes, and nothing else is taken for one."""

import math
from dataclasses import replace
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.phases import DeviceState, PhaseChanged, RequestPhase, Residency
from tokenmux.core.pooling import PooledRows
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.core.sampling import LogitRules, LogProbabilities, Sampling
from tokenmux.core.span import Span
from tokenmux.messages.codec import ORDERS, REPORTS, MalformedMessage
from tokenmux.messages.commands import (
    AddDevice,
    AskTrace,
    Cancel,
    Command,
    DrainDevice,
    Load,
    Order,
    Pause,
    Pin,
    Register,
    RemoveDevice,
    Resize,
    Resume,
    Shutdown,
    Submit,
    Ticket,
    Unload,
    Unregister,
)
from tokenmux.messages.reports import (
    Acknowledged,
    Alive,
    Broken,
    DeviceStatus,
    Finished,
    InstanceId,
    ModelStatus,
    NodeStatus,
    NodeUse,
    PromptPooled,
    PromptTold,
    Report,
    Reports,
    Tokens,
    Traced,
)
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.scheduler.metrics.histogram import Durations

R, M, T = RequestId("r-1"), ModelId("a"), Ticket(7)
FACTS = ModelFacts(M, (Image(ImageId("i"), 10**12),), KvShape(2, 1, 8, 2, 16), 4096, 10**11, 150_000)
REQUEST = Request(R, M, 3, 9, 1.5, ServiceLevel(2.0, 0.05), tenant="somebody", weight=2.0, tenant_weight=0.5)
RULES = LogitRules(1.2, 0.5, -0.5, ((3, 1.5), (2, -100.0)), ((1,), (2, 3)))
SAMPLING = Sampling(0.7, 5, 0.9, 2**64 - 1, 0.05, RULES, 3)
DEVICE = DeviceSetup(DeviceFacts("H100", 1, 2, 3.0, 4.0, 5.0, 6.0), "cuda", "GPU-1", "int8")
COMMANDS_OF_EACH_KIND: list[Command] = [
    Submit(REQUEST, (1, 2, 3), SAMPLING, 2, frozenset({0, 7}), (4, 5), n_prompt_likeliest=3),
    Cancel(R, FinishReason.STOP),
    Pause(R),
    Resume(R),
    Register(FACTS, "some/folder"),
    Unregister(M),
    Load(M),
    Unload(M),
    Pin(M, True),
    Resize(1 << 40, InstanceId(2)),
    AddDevice(DEVICE),
    DrainDevice(InstanceId(2), undo=True),
    RemoveDevice(InstanceId(2)),
    AskTrace(math.inf),
    Shutdown(),
]
COUNTS = (1, 2.0, 0, Durations((0, 3, 0), 0.5))
STATUS = ModelStatus(M, Residency.HOST, True, 1, 2, 3, 4, COUNTS, "gone", True, (InstanceId(2),))
DEVICE_STATUS = DeviceStatus(
    InstanceId(2), "cpu", DeviceState.OUT, 1, 2, 3, COUNTS, M, None, (M,), 4, 5, "it broke", (M,)
)
REPORTS_OF_EACH_KIND: list[Report] = [
    Tokens(R, 5, (1, 2**31), 2.5, (LogProbabilities(-0.5, ((3, -0.1),)), LogProbabilities(-1.0))),
    PromptTold(R, 1, (LogProbabilities(-0.5, ((3, -0.1),)), LogProbabilities(-1.0))),
    PromptPooled(R, PooledRows(32, 16, b"\x00\x00\x80?")),
    Finished(R, FinishReason.FAILED, 3.5, "why", ErrorCode.NOT_SERVABLE),
    PhaseChanged(R, RequestPhase.LOADING, 3, 0.25),
    NodeStatus(1.0, *range(5), 2.0, 3.0, (DEVICE_STATUS,), (STATUS,)),
    NodeUse(1.0, ((M, COUNTS),), (("somebody", COUNTS),)),
    Traced(T, (Span(0, "compute", "a", 1.0, 2.0, {"requests": 3, "share": 0.5, "ended": "stop"}),)),
    Acknowledged(T, "no", ErrorCode.IN_USE, InstanceId(4)),
    Alive(60.0),
    Broken("the device is gone"),
]


def test_every_kind_is_here() -> None:
    assert {type(command) for command in COMMANDS_OF_EACH_KIND} == set(get_args(Command))
    assert {type(report) for report in REPORTS_OF_EACH_KIND} == set(get_args(Report))


@pytest.mark.parametrize("command", COMMANDS_OF_EACH_KIND, ids=lambda command: type(command).__name__)
def test_a_command_comes_back_as_it_was(command: Command) -> None:
    again = ORDERS.decode(ORDERS.encode(Order(T, command)))
    assert again == Order(T, command)
    assert type(again.command) is type(command)


def test_the_setup_of_a_node_comes_back_as_it_was() -> None:
    setup = NodeSetup(
        (DEVICE,), HostFacts(7, 8.0), 9, "slack", ServiceLevel(2.0, 0.05), 3.0, (InstanceId(2),), 5
    )
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(setup), type=NodeSetup)
    assert again == setup


def test_reports_come_back_as_they_were_in_their_order() -> None:
    reports = Reports(InstanceId(3), REPORTS_OF_EACH_KIND)
    assert REPORTS.decode(REPORTS.encode(reports)) == reports


@pytest.mark.parametrize(
    "message", [*COMMANDS_OF_EACH_KIND, *REPORTS_OF_EACH_KIND], ids=lambda message: type(message).__name__
)
def test_a_message_cannot_be_changed_behind_anybodys_back(message: Command | Report) -> None:
    assert not hasattr(message, "__dict__"), "slots"
    for name in type(message).__annotations__:
        with pytest.raises(AttributeError):
            setattr(message, name, None)


def test_what_a_value_derives_from_its_fields_is_derived_again() -> None:
    again = ORDERS.decode(ORDERS.encode(Order(T, Register(FACTS, "")))).command
    assert isinstance(again, Register)
    assert again.facts.n_bytes == 10**12
    assert again.facts.kv.block_bytes == FACTS.kv.block_bytes > 0


def test_bounds_of_a_value_hold_for_what_arrives() -> None:
    lax = Submit(replace(REQUEST, weight=1e9), (1,), Sampling())
    again = ORDERS.decode(ORDERS.encode(Order(T, lax))).command
    assert isinstance(again, Submit)
    assert again.request.weight == 1e6


@pytest.mark.parametrize(
    ("encoded", "says"),
    [
        (b"", "truncated"),
        (b"\x80\x05\x95\x11\x00\x00\x00", "0 bytes that are not|7 bytes that are not"),  # a pickle
        (msgspec.msgpack.encode([7, ["Tokens", "r"]]), "Invalid value 'Tokens'"),
        (msgspec.msgpack.encode([7, ["Cancel", 5]]), "Expected `str`, got `int`"),
        (msgspec.msgpack.encode([7, ["Cancel", "r", "tired"]]), "Invalid enum value 'tired'"),
        (msgspec.msgpack.encode([7, ["Load"]]), "at least length 2"),
        (b"\x91" * 100_000, "Expected `array` of at least length 2"),
    ],
)
def test_what_is_no_command_is_refused_with_the_reason(encoded: bytes, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        ORDERS.decode(encoded)


def test_a_request_that_cannot_be_is_malformed_too() -> None:
    """`nan` would pass every comparison of the scheduler as false."""
    nothing = msgspec.to_builtins(Submit(REQUEST, (1,), Sampling()))
    nothing[1]["weight"] = math.nan
    with pytest.raises(MalformedMessage, match="weight is not a number"):
        ORDERS.decode(msgspec.msgpack.encode([7, nothing]))


@given(st.binary(max_size=60), st.integers(0, 200))
def test_damaged_bytes_never_end_in_another_error(noise: bytes, at: int) -> None:
    whole = REPORTS.encode(Reports(InstanceId(0), REPORTS_OF_EACH_KIND))
    for damaged in (noise, whole[:at], whole[:at] + noise + whole[at + len(noise) :]):
        try:
            REPORTS.decode(damaged)
        except MalformedMessage:
            pass
