"""What is let in can be served, and what is refused could not: the early answer agrees with the
allocators."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.instance.body import device_facts
from tokenmux.core.errors import DoesNotFit
from tokenmux.core.facts import HostFacts, KvShape, ModelFacts
from tokenmux.core.request import RequestId
from tokenmux.scheduler.memory.capacity import check_model, check_pins, check_request, most_tokens
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.testing import make_model

SLAB = 512


model = partial(make_model, max_context=32)


def fits(check: object, *arguments: object) -> bool:
    try:
        check(*arguments)  # type: ignore[operator]
    except DoesNotFit:
        return False
    return True


@settings(max_examples=200)
@given(
    arena_bytes=st.integers(64, 6000),
    n_bytes=st.integers(1, 2000),
    pinned_bytes=st.integers(0, 1000),
    heads=st.integers(1, 5),
    n_tokens=st.integers(1, 100),
)
def test_the_early_answer_is_the_allocators(
    arena_bytes: int, n_bytes: int, pinned_bytes: int, heads: int, n_tokens: int
) -> None:
    device = device_facts(arena_bytes, 0, SLAB)
    wanted = model("m", n_bytes, kv=KvShape(1, heads, 3, 2, 4))
    pinned = [model("pinned", pinned_bytes)] if pinned_bytes else []
    ledger = Ledger(device, HostCache(0))
    placed = all(ledger.can_place(m) and ledger.place(m) for m in (*pinned, wanted))
    table = ledger.open(RequestId("r"), wanted.kv)
    assert fits(check_request, device, wanted, n_tokens, pinned) == (
        bool(placed) and ledger.can_grow([(table, n_tokens)])
    )
    most = most_tokens(arena_bytes, SLAB, wanted, pinned)
    assert fits(check_request, device, wanted, n_tokens, pinned) == (n_tokens <= most)


HOST = HostFacts(1 << 20, 1e9)


@pytest.mark.parametrize(
    ("says", "wanted"),
    [
        (r"raise device\.slab", model("m", 100, kv=KvShape(1, 5, 4, 4, 4))),
        (r"raise host\.cache", model("m", 2 << 20)),
        ("smaller model", model("m", 5000)),
        ("ask for fewer tokens or raise the device budget", model("m", 1900)),
    ],
)
def test_a_model_that_can_never_run_is_refused_with_the_remedy(says: str, wanted: ModelFacts) -> None:
    with pytest.raises(DoesNotFit, match=says):
        check_model(device_facts(2048, 0, SLAB), HOST, wanted)
    check_model(device_facts(2048, 0, SLAB), HOST, model("m", 1400))


def test_pins_may_not_shut_another_model_out() -> None:
    device = device_facts(2048, 0, SLAB)
    small, large = model("small", 700), model("large", 1000)
    check_pins(device, [], [small, large])
    check_pins(device, [large], [large])
    with pytest.raises(DoesNotFit, match="shut out another model: 32 tokens of small"):
        check_pins(device, [large], [small, large])


def test_what_never_fitted_is_no_reason_against_a_pin() -> None:
    """Where one model's whole context did not fit the arena, nothing could be pinned, not even the only
    model."""
    device = device_facts(2048, 0, SLAB)
    wide = replace(model("wide", 1000), max_context=10_000)
    small = model("small", 128)
    check_request(device, wide, device.prefill_chunk_tokens)
    check_pins(device, [wide], [wide])
    check_pins(device, [small], [small, wide])
    with pytest.raises(
        DoesNotFit, match=f"shut out another model: {device.prefill_chunk_tokens} tokens of wide"
    ):
        check_pins(device, [model("large", 700)], [model("large", 700), wide])


def test_a_pin_does_not_take_what_the_others_have_left() -> None:
    """Beside the first pin a model has room for less than its context: that does not stand in the way of
    every other pin."""
    device = device_facts(4096, 0, SLAB)
    first, second = model("first", 1000), model("second", 100)
    wide = model("wide", 1500)
    wide = replace(
        wide,
        max_context=next(n for n in range(1, 10_000) if not fits(check_request, device, wide, n, [first])),
    )
    assert fits(check_request, device, wide, wide.max_context, [])
    check_pins(device, [first, second], [first, second, wide], already=[first])
    with pytest.raises(DoesNotFit, match="tokens of wide"):
        check_pins(device, [first, second], [first, second, wide])
