"""Values that cross seams: immutable, serialisable, and described as they are."""

import dataclasses
import inspect
import re
import types
import typing
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmux.core import errors, event, plan
from tokenmux.core.facts import KvShape, ModelId
from tokenmux.core.request import Request, RequestId, ServiceLevel

ACROSS = [  # commands and reports: `tests/messages/test_codec.py`
    *typing.get_args(event.Event),
    *typing.get_args(plan.Operation),
    *typing.get_args(plan.AtOnce),
]


@pytest.mark.pure
@pytest.mark.parametrize("kind", ACROSS, ids=lambda kind: f"{kind.__module__.split('.')[-1]}.{kind.__name__}")
@settings(max_examples=3)
@given(data=st.data())
def test_what_crosses_a_seam_is_a_plain_value(kind: type, data: st.DataObject) -> None:
    """It survives being encoded, compares by content, and cannot be changed behind anybody's back."""
    value = data.draw(st.from_type(kind))
    with suppress(OverflowError):  # for more than 64 bits
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind)
        assert again == value or "nan" in repr(value)
    assert not hasattr(value, "__dict__"), "slots"
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


def error_classes() -> dict[str, type[Exception]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }


def test_every_error_has_a_code_of_its_own() -> None:
    classes = [kind for kind in error_classes().values() if issubclass(kind, errors.TokenmuxError)]
    assert sorted(kind.code for kind in classes) == sorted(errors.ErrorCode)
    assert all(type(errors.error_of(kind.code, "why")) is kind for kind in classes)
    assert errors.code_named("in_use", errors.ErrorCode.ENDED) is errors.ErrorCode.IN_USE
    assert errors.code_named("InUse", errors.ErrorCode.ENDED) is errors.ErrorCode.ENDED


def test_the_error_tree_is_drawn_as_it_is() -> None:
    """Each line of the drawing hangs below the last one that is less indented."""
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^([\s│├└─]*)([A-Z]\w+)(\s{2,}|$)", line)
        if found and found[2] in error_classes():
            depth = len(found[1])
            above = [(d, name) for d, name in above if d < depth]
            drawn[found[2]] = above[-1][1] if above else "Exception"
            above.append((depth, found[2]))
    assert drawn == {name: kind.__base__.__name__ for name, kind in error_classes().items() if kind.__base__}


def test_every_error_says_what_it_means() -> None:
    assert [name for name, kind in error_classes().items() if not kind.__doc__] == []


@given(n_tokens=st.integers(0, 1000), block_size=st.integers(1, 64))
@settings(max_examples=100)
def test_blocks_hold_their_tokens_and_none_is_empty(n_tokens: int, block_size: int) -> None:
    shape = KvShape(2, 3, 5, 2, block_size)
    n_blocks = shape.blocks_for(n_tokens)
    assert n_blocks * block_size >= n_tokens > (n_blocks - 1) * block_size or n_tokens == n_blocks == 0
    assert shape.block_bytes == block_size * 2 * 2 * 3 * 5 * 2, (
        "layers, keys and values, heads, dimensions, bytes"
    )


def test_deadlines() -> None:
    request = Request(RequestId("r"), ModelId("m"), 10, 10, 100.0, ServiceLevel(ttft_s=10.0, tpot_s=0.5))
    assert [request.deadline_s(i) for i in (0, 1, 4)] == [110.0, 110.5, 112.0]
    assert (ServiceLevel().ttft_s, ServiceLevel().tpot_s) == (10.0, 0.1), "the paper's"


def test_no_operation_is_both_at_once_and_in_time() -> None:
    assert not set(typing.get_args(plan.Operation)) & set(typing.get_args(plan.AtOnce))
    assert isinstance(plan.Operation, types.UnionType)
