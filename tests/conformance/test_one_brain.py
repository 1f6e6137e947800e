"""The scheduler exists once: the node and the simulator must decide the same, line for line.

One seeded trace goes through the `Node`, message by message, and through the `Simulator`: on one device and
on several that share a host, with cancellations, moves, resizes, devices that are lost, drained, added and
removed. Both get the same policies, facts, cost models and virtual devices; what differs is who carries
effects out, in what order, and what becomes of requests.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest

from tokenmux.core.effects import Effects
from tokenmux.core.effects import decisions as decisions_in
from tokenmux.core.event import Cancelled, ResizeAsked
from tokenmux.core.facts import DeviceFacts, HostFacts, InstanceId, KvShape, ModelFacts, ModelId
from tokenmux.core.phases import DeviceState
from tokenmux.core.plan import Activate, AtOnce, Drop, Evict, Fetch, Operation, PageIn, PageOut, Step
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import AddDevice, Cancel, DrainDevice, Register, RemoveDevice, Resize, Submit
from tokenmux.messages.reports import Acknowledged, Finished, Tokens
from tokenmux.messages.setups import DeviceSetup
from tokenmux.node.prompt_prefixes import PromptPrefixes
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.policy.pool import placement
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.simulator import Arrival, Simulator
from tokenmux.testing import make_model
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

GB = 10**9
HOST = HostFacts(cache_bytes=200 * GB, fetch_bytes_per_s=8e9)

Decision = tuple[int, float, Operation | AtOnce]
"""The instance, the time, and what was decided."""


def device(arena_bytes: int, host_kv_bytes: int) -> DeviceFacts:
    return DeviceFacts(
        name="imagined",
        arena_bytes=arena_bytes,
        host_kv_bytes=host_kv_bytes,
        copy_in_bytes_per_s=16e9,
        copy_out_bytes_per_s=16e9,
        memory_bytes_per_s=2e12,
        flops_per_s=4e14,
        step_overhead_s=0.004,
        copy_overhead_s=1e-4,
        slab_bytes=256 << 20,
    )


def models(n: int) -> list[ModelFacts]:
    shape = KvShape(n_layers=28, n_kv_heads=28, head_dim=128, dtype_bytes=2, block_size=16)
    return [
        make_model(f"m{i}", (10 + i % 3) * GB, kv=shape, max_context=4096, n_parameters=7 * GB)
        for i in range(n)
    ]


def trace(seed: int, n_models: int, n_requests: int, gap_s: float = 0.8) -> list[Arrival]:
    """Requests for random models, `gap_s` apart in the mean."""
    rng = np.random.default_rng(seed)
    at_s = 0.0
    arrivals = []
    for number in range(n_requests):
        at_s += float(rng.exponential(gap_s))
        request = Request(
            RequestId(f"r{number}"),
            ModelId(f"m{rng.integers(n_models)}"),
            n_prompt=int(rng.integers(1, 1500)),
            max_tokens=400,
            arrival_s=at_s,
            service=ServiceLevel(ttft_s=float(rng.choice([2.0, 10.0])), tpot_s=0.1),
        )
        arrivals.append(Arrival(request, int(rng.integers(1, 401))))
    return arrivals


@dataclass(frozen=True)
class Cancels:
    at_s: float
    request: RequestId


@dataclass(frozen=True)
class Resizes:
    at_s: float
    arena_bytes: int
    index: int = 0


@dataclass(frozen=True)
class Loses:
    """A device is lost; another takes its place, after the start of its executor."""

    at_s: float
    index: int = 0


@dataclass(frozen=True)
class Drains:
    at_s: float
    index: int


@dataclass(frozen=True)
class Undrains:
    at_s: float
    index: int


@dataclass(frozen=True)
class Adds:
    at_s: float
    facts: DeviceFacts


@dataclass(frozen=True)
class Removes:
    at_s: float
    index: int


Happening = Cancels | Resizes | Loses | Drains | Undrains | Adds | Removes


@dataclass(frozen=True)
class World:
    """What both bodies are given. An executor takes `start_s` until its device is there."""

    devices: tuple[DeviceFacts, ...]
    models: list[ModelFacts]
    arrivals: list[Arrival]
    happenings: tuple[Happening, ...] = ()
    start_s: float = 0.0
    prefix_cache: bool = False
    n_beginnings: int = 1
    """Number of different prompts."""

    def prompt(self, number: int) -> tuple[int, ...]:
        """The prompt of this arrival: another token for each of the different ones, again and again."""
        return (number % self.n_beginnings,) * self.arrivals[number].request.n_prompt

    @property
    def known_arrivals(self) -> list[Arrival]:
        """The arrivals as a simulator sees them: with the keys that a node makes of prompts that begin
        alike."""
        setup = setup_of(*self.devices, host=HOST, prefix_cache=self.prefix_cache)
        prefixes, requests = PromptPrefixes(setup), (arrival.request for arrival in self.arrivals)
        submits = (Submit(r, self.prompt(number), Sampling()) for number, r in enumerate(requests))
        return [
            replace(arrival, request=prefixes.request_of(submit))
            for arrival, submit in zip(self.arrivals, submits, strict=True)
        ]

    @property
    def n_output(self) -> dict[RequestId, int]:
        return {arrival.request.id: arrival.n_output for arrival in self.arrivals}


class SimulatedWorld:
    """A world in the simulator. `log` has its decisions."""

    def __init__(self, world: World) -> None:
        setup = setup_of(*world.devices, host=HOST)
        self.log: list[Decision] = []
        self._cache = HostCache(HOST.cache_bytes)
        self._host_kv = HostKv(setup.host_kv_bytes, max(facts.slab_bytes for facts in world.devices))
        self._start_s = world.start_s
        self._removing: set[int] = set()
        self._simulator = Simulator(
            [self._instance(facts) for facts in world.devices],
            [RooflineCost(facts, HOST) for facts in world.devices],
            LeastLoaded(),
            on_effects=self._note,
        )
        for index in range(len(world.devices)):
            self._simulator.pool.hold(index)
            self._start(index)
        for model in world.models:
            self._simulator.pool.add_model(model)
            self._simulator.pool.settle()
        for happening in world.happenings:
            self._simulator.clock.call_at(happening.at_s, partial(self._befall, happening))
        self._simulator.run(world.known_arrivals)
        self._simulator.pool.check_integrity()

    @property
    def n_moves(self) -> int:
        return self._simulator.n_moves

    def _instance(self, facts: DeviceFacts, before: Instance | None = None) -> Instance:
        return Instance(
            facts,
            self._cache,
            SlackPolicy(),
            before.cost if before else RooflineCost(facts, HOST),
            metrics=before.metrics if before else None,
            host_kv=self._host_kv,
        )

    def _note(self, index: int, at_s: float, effects: Effects) -> None:
        self.log += [(index, at_s, what) for what in decisions_in(effects)]
        if self._removing:
            self._simulator.clock.call_at(at_s, self._look)

    def _start(self, index: int) -> None:
        starting = self._simulator.instances[index]

        def start() -> None:
            if self._simulator.instances[index] is starting:  # or it was lost before
                self._simulator.pool.release(index)
                self._simulator.pool.settle()

        self._simulator.clock.call_at(self._simulator.now_s + self._start_s, start)

    def _befall(self, happening: Happening) -> None:
        match happening:
            case Cancels(at_s, request):
                self._simulator.pool.apply_to_request(Cancelled(at_s, request))
            case Resizes(at_s, arena_bytes, index):
                self._simulator.instances[index].check_resizable(arena_bytes)
                self._simulator.pool.apply(index, ResizeAsked(at_s, arena_bytes))
            case Loses(_, index):
                lost = self._simulator.instances[index]
                self._simulator.pool.hold(index)
                self._simulator.replace(index, self._instance(lost.device, lost))
                self._start(index)
            case Drains(_, index):
                self._simulator.pool.drain(index)
            case Undrains(_, index):
                self._simulator.pool.undrain(index)
            case Adds(_, facts):
                self._start(self._simulator.add(self._instance(facts), RooflineCost(facts, HOST), held=True))
            case Removes(_, index):
                self._removing.add(index)
                self._simulator.pool.drain(index)
        self._simulator.pool.settle()
        self._look()

    def _look(self) -> None:
        """Remove what is empty by now, as operators wish."""
        for index in list(self._removing):
            if self._simulator.pool.is_empty(index) and self._simulator.instances[index].is_idle:
                self._removing.remove(index)
                self._simulator.remove(index)


class ServedWorld(NodeOnVirtualTime):
    """A world in a node. `log` has its decisions."""

    def __init__(self, world: World) -> None:
        self.log: list[Decision] = []
        setup = setup_of(*world.devices, host=HOST, prefix_cache=world.prefix_cache)
        super().__init__(setup, world.n_output, start_s=world.start_s)
        for model in world.models:
            self.send(Register(model, path=""))
        for number, arrival in enumerate(world.arrivals):
            self.submit_at(arrival.request, world.prompt(number))
        for happening in world.happenings:
            self.clock.call_at(happening.at_s, partial(self._befall, happening))
        self.clock.run()
        self.pool.check_integrity()

    def observe(self, index: int, at_s: float, effects: Effects) -> None:
        self.log += [(index, at_s, what) for what in decisions_in(effects)]

    @property
    def ends(self) -> list[RequestId]:
        return [said.request for said in self.said if isinstance(said, Finished)]

    @property
    def drawn(self) -> Counter[RequestId]:
        return Counter(said.request for said in self.said if isinstance(said, Tokens))

    @property
    def answers(self) -> list[str]:
        return [said.error for said in self.said if isinstance(said, Acknowledged)]

    def _befall(self, happening: Happening) -> None:
        match happening:
            case Cancels(_, request):
                self.send(Cancel(request))
            case Resizes(_, arena_bytes, index):
                self.send(Resize(arena_bytes, InstanceId(index)))
            case Loses(_, index):
                self.executor_of(index).kill()
            case Drains(_, index):
                self.send(DrainDevice(InstanceId(index)))
            case Undrains(_, index):
                self.send(DrainDevice(InstanceId(index), undo=True))
            case Adds(_, facts):
                self.send(AddDevice(DeviceSetup(facts)))
            case Removes(_, index):
                self.send(RemoveDevice(InstanceId(index)))


def both(world: World) -> ServedWorld:
    """Run a world in both bodies and compare what they decided. Returns the one with the node."""
    simulated, served = SimulatedWorld(world).log, ServedWorld(world)
    for line, (in_simulator, in_node) in enumerate(zip(simulated, served.log, strict=False)):
        assert in_simulator == in_node, f"the decision logs part at line {line}"
    assert len(simulated) == len(served.log)
    n_changes = sum(not isinstance(happening, Cancels | Loses) for happening in world.happenings)
    assert served.answers == [""] * (len(world.models) + n_changes)
    return served


def assert_all_served(world: World, served: ServedWorld) -> None:
    """Every request has ended once, with all its tokens."""
    assert served.drawn == world.n_output
    assert sorted(served.ends) == sorted(world.n_output)


def kinds(log: Sequence[Decision]) -> set[type]:
    return {type(what) for _, _, what in log}


# ── one device ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("seed", "arena_gb", "host_kv_gb"), [(0, 80, 100), (1, 30, 100), (2, 18, 40), (3, 18, 1)]
)
def test_node_and_simulator_decide_the_same(seed: int, arena_gb: int, host_kv_gb: int) -> None:
    facts = device(arena_gb * GB, host_kv_gb * GB)
    world = World((facts,), models(8), trace(seed, n_models=8, n_requests=60))
    assert_all_served(world, both(world))


@pytest.mark.parametrize(("seed", "n_devices"), [(0, 1), (1, 1), (2, 2)])
def test_both_share_what_prompts_begin_with_alike(seed: int, n_devices: int) -> None:
    facts = replace(device(18 * GB, 40 * GB), prompt_cell_tokens=128)
    world = World(
        (facts,) * n_devices,
        models(6),
        trace(seed, n_models=6, n_requests=60, gap_s=0.5 / n_devices),
        (Loses(20.0), Resizes(40.0, 24 * GB)),
        prefix_cache=True,
    )
    served = both(world)
    assert_all_served(world, served)
    taken = [model.service for i in served.node.pool.instances for model in i.metrics.models.values()]
    assert sum(service.n_cached_prompt_tokens for service in taken) > 1000


@pytest.mark.pure
@pytest.mark.parametrize("seed", range(2))
def test_both_place_alike_where_prompts_begin_alike(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowded model on three devices, one of which is lost: what the indices know decides."""
    facts = replace(device(40 * GB, 40 * GB), prompt_cell_tokens=128)
    crowd = [
        replace(arrival, request=replace(arrival.request, service=ServiceLevel(ttft_s=0.3, tpot_s=0.05)))
        for arrival in trace(seed, n_models=1, n_requests=100, gap_s=0.05)
    ]
    world = World((facts,) * 3, models(1), crowd, (Loses(3.0),), prefix_cache=True, n_beginnings=5)
    served = both(world)
    assert_all_served(world, served)
    assert {index for index, _, what in served.log if isinstance(what, Step)} == {0, 1, 2}
    monkeypatch.setattr(placement, "saved_share", lambda *_: 0.0)
    assert both(world).log != served.log, "nothing was placed by its beginning"


@pytest.mark.parametrize("seed", range(3))
def test_both_cancel_alike(seed: int) -> None:
    arrivals = trace(seed, n_models=8, n_requests=40)
    cancels = tuple(
        Cancels(arrival.request.arrival_s + 0.7 + 0.01 * i, arrival.request.id)
        for i, arrival in enumerate(arrivals)
        if i % 3 == 0
    )
    world = World((device(18 * GB, 40 * GB),), models(8), arrivals, cancels)
    served = both(world)
    assert sorted(served.ends) == sorted(world.n_output)
    assert not served.instance.ledger.kv


@pytest.mark.parametrize("seed", range(3))
def test_both_end_alike_what_its_client_no_longer_waits_for(seed: int) -> None:
    """Queued, while a model is on its way, in the middle of a burst: some expire, others are in time."""
    rng = np.random.default_rng(seed)
    arrivals = [
        replace(arrival, request=replace(arrival.request, expires_s=arrival.request.arrival_s + timeout_s))
        for arrival in trace(seed, n_models=8, n_requests=40)
        for timeout_s in [float(rng.uniform(0.0, 40.0))]
    ]
    world = World((device(18 * GB, 40 * GB),), models(8), arrivals)
    served = both(world)
    ends = {said.request: said for said in served.said if isinstance(said, Finished)}
    assert sorted(ends) == sorted(world.n_output)
    for arrival in arrivals:
        end, request = ends[arrival.request.id], arrival.request
        if end.reason is FinishReason.EXPIRED:
            assert served.drawn[request.id] < arrival.n_output
            assert request.expires_s <= end.at_s < request.expires_s + 1.0, "as soon as its step has ended"
        else:
            assert served.drawn[request.id] == arrival.n_output
    assert {end.reason for end in ends.values()} == {FinishReason.EXPIRED, FinishReason.STOP}
    assert not served.instance.ledger.kv


@pytest.mark.parametrize(
    ("came_s", "cancelled_s", "kind"), [(5.0, 5.4, Activate), (0.1, 2.0, Fetch), (5.0, 30.0, None)]
)
def test_both_supersede_a_load_alike(came_s: float, cancelled_s: float, kind: type[Operation] | None) -> None:
    """One model is on its way when its request is cancelled and another's waits (10 GB are fetched in 1.3
    s, copied in 0.6)."""
    arrivals = [
        Arrival(Request(RequestId(name), ModelId(of), 100, 400, at_s, ServiceLevel(10.0, 0.1)), 20)
        for name, of, at_s in (("gone", "m2", came_s), ("stays", "m1", came_s + 0.1))
    ]
    cancelled = (Cancels(cancelled_s, RequestId("gone")),)
    served = both(World((device(18 * GB, 40 * GB),), models(3), arrivals, cancelled))
    assert served.instance.metrics.n_superseded == (kind is not None)
    if kind is not None:
        decided = [what for _, at_s, what in served.log if at_s == cancelled_s]
        assert kind(ModelId("m1")) in decided, "at once, instead of after the rest of the other"


@pytest.mark.parametrize("seed", range(4))
def test_both_resize_alike(seed: int) -> None:
    """While a step, a load or both are in flight: everything leaves, the arena is replaced, and requests
    go on."""
    sizes = (Resizes(9.0 + 0.3 * seed, 24 * GB), Resizes(22.0 + 0.7 * seed, 60 * GB))
    arrivals = trace(seed, n_models=8, n_requests=40)
    world = World((device(30 * GB, 100 * GB),), models(8), arrivals, sizes)
    served = both(world)
    assert served.instance.device.arena_bytes == 60 * GB
    assert_all_served(world, served)


@pytest.mark.parametrize("start_s", [0.0, 1.7])
@pytest.mark.parametrize("seed", range(4))
def test_both_go_on_alike_after_a_device_was_lost(seed: int, start_s: float) -> None:
    """In the middle of bursts and loads: the tokens that were delivered count, all KV is gone, and nothing
    is lost."""
    losses = tuple(Loses(at_s) for at_s in (7.03 + 0.21 * seed, 7.5 + 0.4 * seed, 25.77))
    arrivals = trace(seed, n_models=8, n_requests=40)
    world = World((device(30 * GB, 100 * GB),), models(8), arrivals, losses, start_s)
    served = both(world)
    assert served.log != SimulatedWorld(World(world.devices, world.models, arrivals, (), start_s)).log
    assert_all_served(world, served)


def test_the_compared_trace_exercises_every_kind_of_decision() -> None:
    world = World((device(18 * GB, 40 * GB),), models(8), trace(2, 8, 60))
    assert {Step, Activate, Evict, PageOut, PageIn, Drop} <= kinds(SimulatedWorld(world).log)


# ── several devices of one host ─────────────────────────────────────────────────────────────────────────────

SEEDS = range(3)


def pool_of(n_devices: int, seed: int, *happenings: Happening, start_s: float = 0.0) -> World:
    """A pool with too little memory for its models, and more work than one device can do."""
    devices = tuple(device((30, 24, 36)[i] * GB, (40, 10, 20)[i] * GB) for i in range(n_devices))
    arrivals = trace(seed, n_models=10, n_requests=30 * n_devices, gap_s=0.8 / n_devices)
    return World(devices, models(10), arrivals, happenings, start_s)


@pytest.mark.parametrize("n_devices", [2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_decides_the_same_in_both(seed: int, n_devices: int) -> None:
    world = pool_of(n_devices, seed)
    served = both(world)
    assert_all_served(world, served)
    assert {index for index, _, _ in served.log} == set(range(n_devices))


def test_the_compared_pools_move_models() -> None:
    assert all(SimulatedWorld(pool_of(n_devices, 0)).n_moves > 3 for n_devices in (2, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_resizes_a_device_alike(seed: int) -> None:
    sizes = (Resizes(6.0 + 0.3 * seed, 20 * GB, 1), Resizes(15.0 + 0.7 * seed, 60 * GB, 0))
    world = pool_of(2, seed, *sizes)
    assert_all_served(world, both(world))


@pytest.mark.parametrize("start_s", [0.0, 2.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_goes_on_alike_when_devices_are_lost(seed: int, start_s: float) -> None:
    losses = (Loses(7.03 + 0.21 * seed, 0), Loses(8.5 + 0.4 * seed, 1), Loses(17.77 + 0.33 * seed, 2))
    world = pool_of(3, seed, *losses, start_s=start_s)
    assert_all_served(world, both(world))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_drains_a_device_alike_and_lets_it_serve_again(seed: int) -> None:
    world = pool_of(3, seed, Drains(6.1 + 0.3 * seed, 1), Undrains(16.4 + 0.3 * seed, 1))
    served = both(world)
    assert_all_served(world, served)
    assert any(index == 1 and at_s > world.happenings[1].at_s for index, at_s, _ in served.log)


@pytest.mark.parametrize("start_s", [0.0, 2.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_adds_and_removes_devices_alike(seed: int, start_s: float) -> None:
    added, removed = Adds(5.3 + 0.3 * seed, device(36 * GB, 0)), Removes(9.9 + 0.4 * seed, 0)
    world = pool_of(2, seed, added, removed, start_s=start_s)
    served = both(world)
    assert_all_served(world, served)
    assert served.node.devices.keys() == {1, 2}
    assert all(device.state is DeviceState.SERVING for device in served.node.devices.values())
    assert {index for index, _, _ in served.log} == {0, 1, 2}


@pytest.mark.parametrize("seed", range(6))
def test_a_pool_to_which_everything_happens_decides_the_same(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    quiet = pool_of(3, seed)

    def between(from_s: float, to_s: float) -> float:
        return float(rng.uniform(from_s, to_s))

    cancels = [
        Cancels(arrival.request.arrival_s + between(0.0, 6.0), arrival.request.id)
        for arrival in quiet.arrivals
        if rng.random() < 0.2
    ]
    happenings = (
        *cancels,
        Loses(between(3, 12), 0),
        Adds(between(3, 12), device(30 * GB, 0)),
        Resizes(between(3, 8), 40 * GB, 1),
        Loses(between(9, 15), 1),
        Removes(between(5, 25), 2),
        Loses(between(16, 30), 3),
        Drains(between(30, 32), 0),
    )
    world = pool_of(3, seed, *happenings, start_s=1.1)
    served = both(world)
    assert sorted(served.ends) == sorted(world.n_output)
