"""What passes between the instances of a pool: placing, draining, losing, adding and removing."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.scheduler.pool.worlds import MODELS, World, slow_device
from tokenmux.core.effects import CopyEnded, Effects, StepEnded
from tokenmux.core.errors import InternalError, InUse
from tokenmux.core.event import Arrived, Cancelled, ModelWanted, Paused, ResizeAsked, Resumed
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.plan import Channel
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.started import StartedStep
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, Refuse
from tokenmux.testing import make_arrival, make_model, make_request
from tokenmux.workload.trace import Arrival

A, B, C = MODELS[:3]
LARGE, SMALL = slow_device(6_000), slow_device(1_300)


def crowd(n: int, at_s: float = 0.0) -> list[Arrival]:
    """Requests of 40 tokens for three models, one after another."""
    return [
        make_arrival(f"r{i} of {at_s}", MODELS[i % 3], n_output=40, arrival_s=at_s + 0.001 * i)
        for i in range(n)
    ]


def where(world: World) -> set[int]:
    """Instances that have requests."""
    return {i for i, instance in enumerate(world.simulator.instances) if instance.requests}


# ── placing ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_spread_over_what_is_open() -> None:
    world = World([LARGE] * 3)
    world.pool.drain(1)
    world.simulator.run(crowd(9), until_s=0.01)
    assert where(world) == {0, 2}
    world.finish()


def test_a_held_instance_takes_only_what_fits_nowhere_else_and_decides_nothing() -> None:
    world = World([SMALL, LARGE])
    world.pool.hold(1)
    small, large = make_arrival("small", A, n_output=4), make_arrival("large", C, n_output=4)
    world.at(2.0, lambda: world.pool.release(1))
    world.simulator.run([small, large], until_s=1.0)
    assert where(world) == {1}
    assert world.entered == {"small": [0], "large": [1]}
    assert world.ended.keys() == {"small"}
    assert world.pool.instances[1].is_idle, "it was asked to decide"
    world.finish()
    assert world.ended.keys() == {"small", "large"}


@pytest.mark.parametrize(
    ("drained", "n_tokens", "why"),
    [
        (1, 48, "every device that could serve this is being drained"),
        (0, 3_000, "no device has room for 3000 tokens of c: ask for fewer, or add a larger one"),
    ],
)
def test_what_no_open_device_can_serve_is_refused_with_the_remedy(
    drained: int, n_tokens: int, why: str
) -> None:
    world = World([SMALL, LARGE])
    world.pool.drain(drained)
    answer = world.pool.submit(Arrived(0.0, make_request("r", C, 16, n_tokens - 16)))
    assert isinstance(answer, Refuse)
    assert answer.reason.startswith(why)
    assert not world.pool.has(RequestId("r"))
    world.finish()


def test_pins_and_a_resize_under_way_leave_less_room() -> None:
    world = World([slow_device(3_000)])
    request = make_request("r", C, 16, 16)
    assert world.pool.takes(0, request)
    world.pool.apply(0, ResizeAsked(0.0, 1_500))
    assert world.pool.instances[0].device.arena_bytes == 3_000
    assert not world.pool.takes(0, request)
    world = World([slow_device(3_000)])
    world.pool.add_model(B)
    world.simulator.apply(0, ModelWanted(0.0, B.id, pinned=True))
    assert not world.pool.takes(0, request)
    world.simulator.apply(0, ModelWanted(0.0, B.id, pinned=False))
    assert world.pool.takes(0, request)


@pytest.mark.pure
def test_a_policy_that_places_where_nothing_is_taken_has_a_bug() -> None:
    world = World([LARGE, LARGE])
    world.pool.drain(0)
    world.policy.place = lambda request, pool: Place(0)  # type: ignore[method-assign]
    with pytest.raises(InternalError, match="least-loaded placed r on instance 0"):
        world.pool.submit(Arrived(0.0, make_request("r", A)))


# ── draining, adding and removing ───────────────────────────────────────────────────────────────────────────


def test_a_drained_instance_gives_all_its_requests_away() -> None:
    world = World([LARGE, LARGE])
    world.at(0.5, lambda: world.pool.drain(0))
    world.simulator.run(crowd(9), until_s=0.49)
    assert where(world) == {0, 1}
    world.simulator.run([], until_s=1.3)
    assert world.pool.is_empty(0)
    assert where(world) == {1}
    world.finish()
    assert len(world.ended) == 9


def test_requests_of_a_drained_instance_wait_until_another_one_can_take_them() -> None:
    world = World([LARGE])
    world.at(0.1, lambda: world.pool.drain(0))
    world.at(0.2, lambda: world.add(slow_device(2_500)))
    world.simulator.run(crowd(3), until_s=0.15)
    assert where(world) == {0}
    world.simulator.run([], until_s=0.6)
    assert world.pool.index_of(RequestId("r0 of 0.0")) == 1
    assert world.pool.index_of(RequestId("r2 of 0.0")) == 0, "it does not fit there"
    world.finish()
    assert len(world.ended) == 3


def test_a_drain_can_be_undone() -> None:
    world = World([LARGE, LARGE])
    world.pool.drain(0)
    world.pool.undrain(0)
    world.pool.drain(1)
    world.finish(crowd(3))
    assert {index for been in world.entered.values() for index in been} == {0}


def test_an_added_instance_learns_the_models_and_takes_requests() -> None:
    world = World([LARGE], models=())
    for model in (A, B):
        world.pool.add_model(model)
    assert world.add(LARGE) == 1
    assert world.pool.instances[1].models.keys() == {"a", "b"}
    world.pool.remove_model(B.id)
    assert [instance.models.keys() for instance in world.pool.instances] == [{"a"}, {"a"}]
    assert world.add(LARGE) == 2
    assert world.pool.instances[2].models.keys() == {"a"}
    world.finish(crowd(1))


def test_only_an_empty_instance_is_removed_and_its_number_is_not_used_again() -> None:
    world = World([LARGE, LARGE])
    world.simulator.run(crowd(9), until_s=0.1)
    with pytest.raises(InUse, match="instance 0 has requests: drain it first"):
        world.simulator.remove(0)
    world.pool.drain(0)
    world.pool.settle()
    world.simulator.run([], until_s=2.0)
    world.simulator.remove(0)
    assert world.pool.present == [1]
    assert world.add(LARGE) == 2
    world.finish(crowd(9, at_s=3.0))
    assert all(index != 0 for been in world.entered.values() for index in been[3:])


# ── losing ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("held_s", [None, 0.5])
def test_requests_of_a_lost_device_go_on_with_their_tokens(held_s: float | None) -> None:
    world = World([LARGE, LARGE])
    world.at(0.5, lambda: world.lose(0, held_s))
    world.finish(crowd(9))
    assert [record.n_tokens for record in world.simulator.records] == [40] * 9
    others = {been[1] for been in world.entered.values() if been[0] == 0}
    assert others
    assert held_s is None or others == {1}


def test_the_last_device_is_waited_for() -> None:
    world = World([LARGE])
    world.at(0.5, lambda: world.lose(0, 3.0))
    world.finish(crowd(3))
    assert len(world.ended) == 3
    assert min(record.end_s for record in world.simulator.records) > 3.5


def test_the_replacement_learns_models_pins_and_wishes() -> None:
    world = World([LARGE])
    for model in (A, B, C):
        world.pool.add_model(model)
    world.pool.apply(0, ModelWanted(0.0, A.id, pinned=True))
    world.pool.apply(0, ModelWanted(0.0, B.id, wanted=True))
    world.lose(0)
    after = world.pool.instances[0]
    assert {m: (after.models[m].pinned, after.models[m].wanted) for m in after.models} == {
        "a": (True, None),
        "b": (False, True),
        "c": (False, None),
    }
    world.finish()


def test_tokens_of_the_lost_step_count_and_may_be_the_last() -> None:
    """A burst of 20 tokens is lost just after its last one was drawn, and before it was reported."""
    world = World([LARGE, LARGE])
    bursts: list[StartedStep] = []
    ends: list[tuple[float, int]] = []

    def note(index: int, at_s: float, effects: Effects) -> None:
        bursts.extend(e for e in effects if isinstance(e, StartedStep) and e.operation.repeat > 1)
        ends.extend((e.done.ends_s[-1], index) for e in effects if isinstance(e, StepEnded))

    world.simulator._on_effects = note
    world.simulator.run([make_arrival("r", A, n_output=10)])
    burst_end_s, index = ends[-1]
    assert bursts

    world = World([LARGE, LARGE])
    world.at(burst_end_s, lambda: world.lose(index, 1.0))
    world.simulator.run([make_arrival("r", A, n_output=10)], until_s=burst_end_s)
    (record,) = world.simulator.records
    assert (record.n_tokens, record.n_on_time, record.reason) == (10, 10, FinishReason.STOP)
    world.finish()
    assert world.pool.instances[index].metrics.models[A.id].service.n_tokens == 10, "counters go on"


def test_a_model_that_is_removed_takes_requests_along_that_were_leaving() -> None:
    world = World([LARGE, LARGE], models=(), host_kv_bytes=0)
    world.pool.add_model(A)
    world.pool.settle()

    def drain_and_remove() -> None:
        world.pool.drain(0)
        world.pool.settle()
        assert any(r.to_end and r.in_step for r in world.pool.instances[0].requests.values())
        world.pool.remove_model(A.id)

    world.at(0.75, drain_and_remove)
    world.finish([make_arrival("r", A, n_output=30)])
    assert [record.reason for record in world.simulator.records] == [FinishReason.FAILED]


@pytest.mark.parametrize("shared", [True, False])
def test_kv_on_the_host_goes_along(shared: bool) -> None:
    """From a drained instance always; from a lost one if others share the host KV, which outlives it."""
    world = World([LARGE] * 3, host_kv_bytes=8_192 if shared else None)
    world.at(0.75, lambda: world.pool.drain(0))
    world.at(1.25, lambda: world.lose(1, held_s=1.0))
    world.finish([make_arrival("r", A, n_output=60)])
    assert world.entered == {"r": [0, 1, 2]}
    (fresh, moved, lost) = world.kept[RequestId("r")]
    assert fresh == 0
    assert moved > 16
    assert lost == (moved if shared else 0)


def test_a_request_that_moves_waits_for_the_copies_it_needs_and_one_step() -> None:
    """Its weights and its KV come to the other device; paging it out costs it nothing."""
    world = World([LARGE, LARGE], host_kv_bytes=8_192)
    ends_s: list[tuple[float, int]] = []
    copies_s: list[float] = []

    def note(index: int, at_s: float, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, StepEnded):
                ends_s.extend((end_s, index) for end_s in effect.done.ends_s)
            if isinstance(effect, CopyEnded) and index == 1:
                copies_s.append(effect.done.at_s - effect.started.at_s)

    world.simulator._on_effects = note
    world.at(0.75, lambda: world.pool.drain(0))
    world.simulator.run([make_arrival("r", A, n_output=60)])
    pause_s = min(at_s for at_s, index in ends_s if index) - max(at_s for at_s, index in ends_s if not index)
    assert len(copies_s) == 2
    step_s = ends_s[-1][0] - ends_s[-2][0]
    assert pause_s < 1.2 * (sum(copies_s) + step_s)


def test_another_arena_takes_other_requests() -> None:
    world = World([slow_device(1_300)])
    request = make_request("r", C, 16, 16)
    assert not world.pool.takes(0, request)
    world.pool.lose(0, world.instance(LARGE))
    assert world.pool.takes(0, request)


@pytest.mark.parametrize("how", ["lost", "removed"])
def test_others_fetch_what_a_device_that_is_gone_was_fetching(how: str) -> None:
    """Nothing else would wake them."""
    world = World([LARGE, LARGE])

    def wait_and_go() -> None:
        assert world.cache.fetching
        world.pool.apply(1, Arrived(world.pool.now_s, make_request("r", C, max_tokens=2)))
        world.pool.settle()
        assert world.pool.instances[1].is_idle, "it waits for the fetch of the other"
        world.pool.apply_to_request(Cancelled(world.pool.now_s, RequestId("first")))
        if how == "lost":
            world.pool.lose(0, world.instance(LARGE))
        else:
            world.pool.remove(0)
        world.pool._agenda.changed.pop(0, None)
        world.pool.settle()
        assert world.pool.instances[1].in_flight(Channel.FETCH)

    world.simulator.run([make_arrival("first", C, n_output=10)], until_s=0.0)
    wait_and_go()


def test_a_held_instance_is_not_asked_when_another_one_has_fetched() -> None:
    world = World([SMALL, LARGE])
    world.pool.hold(1)
    assert world.pool.submit(Arrived(0.0, make_request("waits", A, max_tokens=60))) == 1
    world.at(5.0, lambda: world.pool.apply_to_request(Cancelled(5.0, RequestId("waits"))))
    world.simulator.run([make_arrival("r", A, n_output=4)], until_s=4.0)
    assert world.ended.keys() == {"r"}
    assert not world.pool.instances[1].resident_models
    world.finish()


def test_requests_leave_a_held_instance_for_the_first_that_serves() -> None:
    world = World([LARGE, LARGE])
    world.pool.hold(0)
    world.pool.hold(1)
    world.at(1.0, lambda: world.pool.release(1))
    world.simulator.run([make_arrival("r", A, n_output=4)], until_s=0.5)
    assert world.pool.index_of(RequestId("r")) == 0
    world.finish()
    assert world.entered == {"r": [0, 1]}


def test_kept_kv_ends_on_the_grid_of_the_next_instance() -> None:
    """In the middle of a prompt, on a grid of 8 tokens, it is paged out; the next instance has one of 32."""
    fine, coarse = (replace(LARGE, prefill_chunk_tokens=grid) for grid in (8, 32))
    world = World([fine, coarse])
    request = RequestId("r")

    def drain() -> None:
        assert world.pool.instances[0].requests[request].n_computed == 48
        world.pool.drain(0)

    world.at(0.26, drain)
    world.finish([make_arrival("r", A, 60, n_output=20)])
    assert world.entered[request] == [0, 1]
    assert world.kept[request] == [0, 32]


# ── requests on their way ───────────────────────────────────────────────────────────────────────────────────


def leaving(events: Sequence[Cancelled | Paused | Resumed], host_kv_bytes: int) -> World:
    """Drain the instance of a request in the middle of a step, and tell the request something meanwhile.

    With host KV that is while it is paged out, without while it waits for the end of its step.
    """
    world = World([LARGE, LARGE], host_kv_bytes=host_kv_bytes)
    pool, request = world.pool, events[0].request

    def happen() -> None:
        pool.drain(0)
        pool.settle()
        state = pool.instances[0].requests[request]
        assert state.in_step
        assert (state.to_end is None, state.in_copy) == (host_kv_bytes > 0, host_kv_bytes > 0)
        for event in events:
            pool.apply_to_request(replace(event, at_s=pool.now_s))

    world.at(0.75, happen)
    world.at(40.0, lambda: pool.apply_to_request(Resumed(40.0, R)))
    world.simulator.run([make_arrival("r", A, n_output=60)], until_s=2.0)
    return world


R = RequestId("r")
either_way = pytest.mark.parametrize("host_kv_bytes", [0, 8_192])


@either_way
def test_a_pause_follows_a_request_that_moves(host_kv_bytes: int) -> None:
    world = leaving([Paused(0.0, R)], host_kv_bytes)
    assert world.entered[R] == [0, 1]
    assert world.pool.instances[1].requests[R].is_paused
    world.finish()
    (record,) = world.simulator.records
    assert record.end_s > 40.0
    assert (record.n_tokens, record.n_on_time) == (60, 60), "its deadlines did not wait"


@either_way
def test_one_that_was_paused_and_reads_again_while_it_moves_goes_on(host_kv_bytes: int) -> None:
    world = leaving([Paused(0.0, R), Resumed(0.0, R)], host_kv_bytes)
    world.finish()
    assert world.simulator.records[0].end_s < 4
    assert world.entered[R] == [0, 1]


@either_way
def test_one_that_is_cancelled_while_it_moves_ends_once_and_nothing_remembers_it(host_kv_bytes: int) -> None:
    world = leaving([Cancelled(0.0, R), Cancelled(0.0, R)], host_kv_bytes)
    world.finish()
    assert world.entered[R] == [0]
    assert [record.reason for record in world.simulator.records] == [FinishReason.CANCELLED]


@pytest.mark.parametrize("event", [Cancelled(0.0, R), Paused(0.0, R)])
def test_an_event_catches_up_with_a_request_between_two_instances(event: Cancelled | Paused) -> None:
    """The node may be told several things before it decides."""
    world = World([LARGE, LARGE])
    pool = world.pool
    pool.submit(Arrived(0.0, make_request("r", A)))
    pool.drain(0)
    pool.settle()
    assert pool.index_of(R) == 1
    pool.undrain(0)
    pool.drain(1)
    pool._apply_next(*pool._agenda.events.popleft())
    assert pool.index_of(R) is None
    assert pool.has(R)
    assert not pool.is_empty(1), "it may come back"
    pool.apply_to_request(event)
    pool.settle()
    if isinstance(event, Paused):
        assert pool.instances[0].requests[R].told_phase is RequestPhase.PAUSED
        pool.apply_to_request(Cancelled(0.0, R))
    pool.settle()
    assert not pool.has(R)
    world.finish()


def move(world: World) -> None:
    """Have the policy move the request from the first instance to the second."""
    policy = world.policy
    assert isinstance(policy, LeastLoaded)
    policy._homes[A.id][1] = 0
    policy._moving[R] = (A.id, 1)
    world.pool._moves.begin(Move(R, 0, 1))


def test_a_move_to_an_instance_that_closes_meanwhile_goes_elsewhere() -> None:
    world = World([LARGE] * 3)
    pool = world.pool
    pool.submit(Arrived(0.0, make_request("r", A)))
    move(world)
    pool.drain(1)
    pool.settle()
    assert pool.index_of(R) in (0, 2)
    pool.apply_to_request(Cancelled(0.0, R))
    pool.settle()
    world.finish()


def test_a_move_that_a_loss_overtakes_is_over() -> None:
    """The withdrawal that was on its way is for the lost instance, not for its replacement."""
    world = World([LARGE] * 2)
    pool = world.pool
    pool.submit(Arrived(0.0, make_request("r", A)))
    move(world)
    pool.drain(1)
    pool.lose(0, world.instance(LARGE))
    pool._agenda.changed.clear()
    pool.settle()
    assert world.entered[R] == [0, 0]
    pool.apply_to_request(Cancelled(0.0, R))
    pool.settle()
    world.finish()


def test_the_policy_does_not_move_what_is_leaving() -> None:
    world = World([LARGE] * 2)
    pool = world.pool
    pool.submit(Arrived(0.0, make_request("r", A)))
    pool.drain(0)
    move(world)
    assert pool.n_moves == 0
    pool.settle()
    assert world.entered[R] == [0, 1]
    pool.apply_to_request(Cancelled(0.0, R))
    pool.settle()
    world.finish()


def test_a_model_that_is_removed_takes_requests_along_that_are_between_two_instances() -> None:
    world = World([LARGE] * 2, models=())
    pool = world.pool
    pool.add_model(A)
    pool.submit(Arrived(0.0, make_request("r", A)))
    pool.drain(0)
    pool._apply_next(*pool._agenda.events.popleft())
    assert pool.index_of(R) is None
    pool.remove_model(A.id)
    pool.settle()
    assert [record.reason for record in world.simulator.records] == [FinishReason.FAILED]
    assert not pool.has(R)


def test_one_that_is_cancelled_before_it_could_move_is_forgotten() -> None:
    """Its entry stayed in the policy for ever."""
    world = World([LARGE, LARGE])
    pool = world.pool
    pool.submit(Arrived(0.0, make_request("r", A)))
    move(world)
    pool.apply_to_request(Cancelled(0.0, R))
    pool.settle()
    world.finish()


def test_an_event_of_a_request_that_is_over_changes_nothing() -> None:
    world = World([LARGE])
    world.pool.apply_to_request(Cancelled(0.0, RequestId("unknown")))
    world.pool.settle()
    world.finish()


def test_phases_are_told_when_a_paused_request_arrives() -> None:
    world = World([LARGE])
    told: list[RequestPhase] = []
    world.simulator._on_effects = lambda index, at_s, effects: told.extend(
        effect.phase for effect in effects if isinstance(effect, PhaseChanged)
    )
    world.pool.submit(Arrived(0.0, make_request("r", make_model("a", 600)), is_paused=True))
    assert told == [RequestPhase.QUEUED, RequestPhase.PAUSED]
