"""What operators may change about a pool's devices: nothing that leaves a model, or a pin, without room."""

import pytest

from tests.scheduler.pool.worlds import MODELS, World, slow_device
from tokenmux.core.errors import DoesNotFit, InUse
from tokenmux.core.event import Arrived, ModelWanted, ResizeAsked
from tokenmux.core.facts import ModelFacts
from tokenmux.testing import make_arrival, make_model, make_request

A, B, C = MODELS[:3]
LARGE = slow_device(6_000)


def world(*arenas: int, models: tuple[ModelFacts, ...] = (A, B, C)) -> World:
    """A pool of devices with arenas of these sizes that knows the models."""
    there = World([slow_device(n_bytes) for n_bytes in arenas], models=())
    for model in models:
        there.pool.add_model(model)
    return there


def pin(there: World, index: int, model: ModelFacts, pinned: bool = True) -> None:
    there.pool.apply(index, ModelWanted(0.0, model.id, pinned=pinned))


def pins(there: World) -> list[set[str]]:
    """What is pinned on each instance."""
    return [{m for m, model in i.models.items() if model.pinned} for i in there.pool.instances]


# ── draining ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_only_device_with_room_for_a_model_is_not_drained() -> None:
    there = world(6_000, 1_300)
    with pytest.raises(DoesNotFit, match="no other device has room for b: remove the model first, or add"):
        there.pool.check_drainable(0)
    there.pool.check_drainable(1)
    there.add(LARGE)
    there.pool.check_drainable(0)


def test_what_a_device_cannot_serve_does_not_keep_it() -> None:
    there = world(1_300, 1_300)
    there.pool.check_drainable(0)


def test_a_device_that_is_drained_serves_nothing_for_others_and_a_held_one_will() -> None:
    there = world(6_000, 6_000)
    there.pool.hold(1)
    there.pool.check_drainable(0)
    there.pool.release(1)
    there.pool.drain(1)
    with pytest.raises(DoesNotFit, match="no other device has room"):
        there.pool.check_drainable(0)


def test_pins_move_to_other_devices_and_keep_their_room() -> None:
    """Each of the two others pins one: both on one would shut c out."""
    there = world(6_000, 4_500, 4_500)
    pin(there, 0, A)
    pin(there, 0, B)
    there.pool.check_drainable(0)
    there.pool.drain(0)
    assert pins(there) == [set(), {"a"}, {"b"}]
    there.finish()


def test_a_pin_that_finds_no_room_keeps_the_device_as_it_is() -> None:
    there = world(6_000, 3_000)
    pin(there, 0, A)
    pin(there, 0, B)
    with pytest.raises(DoesNotFit, match="room to pin a: unpin a model, or add a device"):
        there.pool.check_drainable(0)
    assert pins(there) == [{"a", "b"}, set()]
    assert there.pool.open == (0, 1)
    there.pool.drain(0)
    assert pins(there)[0], "what has no other place stays pinned"


def test_a_pin_that_is_elsewhere_too_is_not_in_the_way() -> None:
    there = world(6_000, 3_000)
    pin(there, 0, B)
    pin(there, 1, B)
    there.pool.drain(0)
    assert pins(there) == [set(), {"b"}]


# ── pinning and loading ─────────────────────────────────────────────────────────────────────────────────────


def test_a_pin_goes_where_the_model_is_and_else_where_least_is_pinned() -> None:
    there = world(6_000, 6_000)
    assert there.pool.pin_target(A.id) == 0
    pin(there, 0, B)
    assert there.pool.pin_target(A.id) == there.pool.load_target(A.id) == 1
    there.pool.apply(0, ModelWanted(0.0, A.id, wanted=True))
    there.pool.settle()
    there.simulator.run([], until_s=5.0)
    assert A.id in there.pool.instances[0].resident_models
    assert there.pool.pin_target(A.id) == there.pool.load_target(A.id) == 0
    pin(there, 1, A)
    assert there.pool.pin_target(A.id) == 1, "where it is pinned already"


def test_what_no_device_can_pin_or_load_is_refused() -> None:
    there = world(1_300, 6_000)
    there.pool.drain(1)
    with pytest.raises(DoesNotFit, match="no device that stays in the pool has room for c: add a larger one"):
        there.pool.load_target(C.id)
    with pytest.raises(DoesNotFit, match="these pins would shut out another model"):
        there.pool.pin_target(C.id)


def test_nothing_is_pinned_on_a_device_that_is_being_resized() -> None:
    there = world(6_000, 6_000)
    there.simulator.run([make_arrival("r", A, n_output=20)], until_s=0.2)
    there.pool.apply(0, ResizeAsked(0.2, 5_000))
    assert there.pool.pin_target(A.id) == 1


def test_a_request_goes_where_its_model_is_pinned() -> None:
    there = world(6_000, 6_000, 6_000)
    pin(there, 2, B)
    assert there.pool.submit(Arrived(0.0, make_request("r", B))) == 2


# ── resizing ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_device_may_become_too_small_for_models_that_others_serve() -> None:
    there = world(6_000, 6_000)
    with pytest.raises(DoesNotFit):
        there.pool.instances[0].check_resizable(1_300)
    there.pool.check_resizable(0, 1_300)
    with pytest.raises(DoesNotFit):
        world(6_000, 1_300).pool.check_resizable(0, 1_300)


@pytest.mark.parametrize("why", ["pinned", "live"])
def test_but_not_for_what_it_serves_now(why: str) -> None:
    there = world(6_000, 6_000)
    if why == "pinned":
        pin(there, 0, C)
    else:
        assert there.pool.submit(Arrived(0.0, make_request("r", C))) == 0
    with pytest.raises(DoesNotFit, match=r"1KiB is too little|is too little: c with a request"):
        there.pool.check_resizable(0, 1_300)


def test_two_resizes_at_once_are_refused() -> None:
    there = world(6_000, 6_000)
    there.pool.submit(Arrived(0.0, make_request("r", A)))
    there.pool.settle()
    there.pool.apply(0, ResizeAsked(0.0, 5_000))
    with pytest.raises(InUse, match="being resized"):
        there.pool.check_resizable(0, 4_000)


def test_a_pin_does_not_take_the_room_of_a_request_that_is_being_served() -> None:
    """There is room for 56 tokens beside the weights, and for 28, more than a chunk, beside the pin."""
    small, other = (make_model(name, 256, max_context=200) for name in ("small", "other"))
    there = world(1_280, models=(small, other))
    there.pool.submit(Arrived(0.0, make_request("r", small, n_prompt=20, max_tokens=20)))
    there.pool.settle()
    with pytest.raises(DoesNotFit, match="a request that is being served would lose its room"):
        there.pool.pin_target(other.id)
    assert world(1_280, models=(small, other)).pool.pin_target(other.id) == 0
