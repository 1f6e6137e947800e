"""The default policy's rules, one test each: urgency, weights, pins, patience, no thrashing."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tokenmux.core.effects import Effects, RequestEnded, decisions
from tokenmux.core.errors import InternalError
from tokenmux.core.event import ModelAdded, ModelWanted, Paused
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Activate, AtOnce, Evict, Operation, PageOut, Step
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import DEFAULT_LEVEL, Request, RequestId, ServiceLevel
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.metrics.shares import DEFERRAL_TTFTS
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.hardware import GB, gpu, instance_facts
from tokenmux.simulator.profiles import ProfiledCost, step_fit
from tokenmux.simulator.simulator import Simulator
from tokenmux.workload.trace import Arrival

Decisions = list[tuple[float, Operation | AtOnce]]


class World:
    """One H100 with models of 15 GB; four of them fit."""

    def __init__(self, n_models: int, service: ServiceLevel = DEFAULT_LEVEL) -> None:
        kind = architecture("qwen2.5-7b")
        self.models = [kind.facts(f"m{i}") for i in range(n_models)]
        device = instance_facts(gpu("H100"))
        fits = [(facts, step_fit(gpu("H100"), 1, kind.name, facts)) for facts in self.models]
        truth = ProfiledCost(device, fits, 5e9)
        cache = HostCache(1000 * GB)
        for facts in self.models:
            cache.end_fetch(cache.begin_fetch(facts.images)[0], ok=True)
        self.records: dict[RequestId, RequestRecord] = {}
        self.decisions: Decisions = []
        self.instance = Instance(
            device,
            cache,
            SlackPolicy(),
            truth,
            service=service,
        )
        self.simulator = Simulator([self.instance], truth, on_effects=self._note)
        for facts in self.models:
            self.simulator.apply(0, ModelAdded(0.0, facts))

    def _note(self, _index: int, at_s: float, effects: Effects) -> None:
        self.decisions += [(at_s, decided) for decided in decisions(effects)]
        ended = (effect.record for effect in effects if isinstance(effect, RequestEnded))
        self.records.update({record.request.id: record for record in ended})

    def arrival(
        self,
        at_s: float,
        model: int,
        n_output: int = 100,
        weight: float = 1.0,
        ttft_s: float = 10.0,
        tpot_s: float = 0.1,
    ) -> Arrival:
        number = RequestId(f"{model}@{at_s}")
        service = ServiceLevel(ttft_s, tpot_s)
        request = Request(number, ModelId(f"m{model}"), 200, 4000, at_s, service, weight=weight)
        return Arrival(request, n_output)

    def activations(self) -> list[ModelId]:
        return [decided.model for _, decided in self.decisions if isinstance(decided, Activate)]


def steady(
    world: World,
    models: range,
    duration_s: float,
    rate: float,
    weight_of_first: float = 1.0,
    ttft_s: float = 10.0,
) -> list[Arrival]:
    rng = np.random.default_rng(0)
    arrivals = [
        world.arrival(float(at_s), model, 250, weight_of_first if model == models[0] else 1.0, ttft_s)
        for model in models
        for at_s in np.sort(rng.random(int(rate * duration_s)) * duration_s)
    ]
    return sorted(arrivals, key=lambda a: a.request.arrival_s)


def test_the_most_urgent_model_is_loaded_first() -> None:
    world = World(3)
    world.simulator.run(
        [world.arrival(0.0, 0), world.arrival(0.01, 1, ttft_s=10.0), world.arrival(0.02, 2, ttft_s=2.0)]
    )
    assert world.activations() == ["m0", "m2", "m1"]


def test_a_burst_is_repeated_and_shared() -> None:
    world = World(1)
    world.simulator.run([world.arrival(0.0, 0, 300), world.arrival(0.0001, 0, 300)])
    steps = [decided for _, decided in world.decisions if isinstance(decided, Step)]
    assert len(steps) < 20
    assert max(step.repeat for step in steps) > 20
    assert all(len(step.chunks) == 2 for step in steps[1:])


def test_when_all_requests_are_paused_their_kv_is_written_through() -> None:
    """Even of a model on the device: whoever comes next may need the room at once."""
    world = World(1)
    paused = world.arrival(0.0, 0, 2000)
    world.simulator.run([paused], until_s=5.0)
    assert not any(isinstance(decided, PageOut) for _, decided in world.decisions)
    world.simulator.apply(0, Paused(5.0, paused.request.id))
    with pytest.raises(InternalError, match="1 requests unfinished"):
        world.simulator.run([])
    assert [decided for _, decided in world.decisions if isinstance(decided, PageOut)] == [
        PageOut((paused.request.id,))
    ]


def test_weight_brings_a_model_forward() -> None:
    def late_share(weight: float) -> float:
        world = World(16)
        world.simulator.run(steady(world, range(16), 60.0, 0.25, weight))
        records = [r for r in world.records.values() if r.request.model == "m0"]
        return 1 - sum(r.n_on_time for r in records) / sum(r.n_tokens for r in records)

    assert late_share(1.0) > 0.1
    assert late_share(8.0) < late_share(1.0) / 2


def test_a_pinned_model_is_never_evicted() -> None:
    world = World(8)
    world.simulator.apply(0, ModelWanted(0.0, ModelId("m7"), pinned=True))
    world.simulator.run(steady(world, range(7), 40.0, 0.1))
    assert "m7" in world.instance.resident_models
    assert Evict(ModelId("m7")) not in [decided for _, decided in world.decisions]
    assert len(world.records) == 28


def test_an_unwanted_model_leaves_and_comes_back_when_asked_for() -> None:
    world = World(2)
    world.simulator.run([world.arrival(0.0, 0, 5)])
    world.simulator.apply(0, ModelWanted(5.0, ModelId("m0"), wanted=False))
    assert "m0" not in world.instance.resident_models
    world.simulator.run([world.arrival(6.0, 0, 5)])
    assert world.activations() == ["m0", "m0"]


def test_nobody_thrashes_where_all_have_slack() -> None:
    """Five models of which four fit, all with time to spare: a model stays for about as long as it takes
    to bank the next turn."""
    world = World(5)
    arrivals = steady(world, range(5), 60.0, 0.2)
    world.simulator.run(arrivals)
    assert len(world.activations()) < len(arrivals)
    assert all(r.n_on_time == r.n_tokens for r in world.records.values())


def test_every_load_is_followed_by_a_step_before_the_model_goes() -> None:
    """Minimum residency: unless its requests are gone, a model steps between its load and its eviction."""
    world = World(10)
    world.simulator.run(steady(world, range(10), 40.0, 0.2))
    stepped: Counter[ModelId] = Counter()
    wasted = 0
    for _, decided in world.decisions:
        match decided:
            case Activate(model):
                stepped[model] = 0
            case Step(model):
                stepped[model] += 1
            case Evict(model):
                wasted += stepped[model] == 0
    assert wasted == 0


def test_waiting_is_bounded_under_overload() -> None:
    """Twice what one device can do: what is too late is deferred, but not for as long as the overload
    lasts."""
    ttft_s = 2.0
    world = World(20, ServiceLevel(ttft_s, 0.1))
    arrivals = steady(world, range(20), 60.0, 0.3, ttft_s=ttft_s)
    world.simulator.run(arrivals)
    waits = sorted(r.ttft_s for r in world.records.values() if r.ttft_s is not None)
    assert len(waits) == len(arrivals)
    assert waits[-1] < (1 + DEFERRAL_TTFTS) * ttft_s + 3 * waits[len(waits) // 2]


def test_a_long_burst_makes_way_for_who_is_due_before_its_end() -> None:
    """In a pool for batch, steps come in bursts of seconds; the interactive model comes in beside one and
    must not wait for its end."""
    world = World(2, ServiceLevel(600.0, 2.0))
    world.simulator.run(
        [
            world.arrival(0.0, 0, 3000, ttft_s=600.0, tpot_s=2.0),
            world.arrival(10.0, 1, 50, ttft_s=2.0, tpot_s=0.05),
        ]
    )
    assert world.records[RequestId("1@10.0")].n_on_time == 50
    longest = max(decided.repeat for _, decided in world.decisions if isinstance(decided, Step))
    assert longest > 200, "batch took no long bursts: this shows nothing"


def test_who_can_wait_evicts_nobody_who_is_about_to_come_back() -> None:
    """The interactive model has just been used; batch has ten minutes, and takes its room when it has not
    come back for a while."""
    world = World(5)
    batch = [world.arrival(0.1 * i, i, 2500, ttft_s=600.0, tpot_s=2.0) for i in (1, 2, 3)]
    late_batch = world.arrival(8.0, 4, 100, ttft_s=600.0, tpot_s=2.0)
    interactive = [world.arrival(at_s, 0, 20, ttft_s=2.0, tpot_s=0.05) for at_s in (0.0, 12.0, 24.0)]
    world.simulator.run(sorted([*batch, late_batch, *interactive], key=lambda a: a.request.arrival_s))
    loads = world.activations()
    assert loads.count(ModelId("m0")) == 1
    assert loads.count(ModelId("m4")) == 1, "it had its turn in the end"
    assert all(record.n_on_time == record.n_tokens for record in world.records.values())


def test_what_is_too_late_makes_no_one_else_late() -> None:
    """A burst that nothing could serve in time comes before requests that can be: by deadline alone, all of
    these would be late too."""
    world = World(12)
    burst = [world.arrival(0.001 * i, i % 8, 400, ttft_s=0.5, tpot_s=0.02) for i in range(160)]
    later = [world.arrival(20.0 + i, 8 + i % 4, 50) for i in range(12)]
    world.simulator.run([*burst, *later])
    records = [world.records[a.request.id] for a in later]
    assert sum(r.n_on_time for r in records) > 0.9 * sum(r.n_tokens for r in records)
    assert len(world.records) == len(burst) + len(later)


def test_a_long_prompt_makes_no_row_of_its_model_late() -> None:
    """A chunk of it takes as long as many tokens may. The prompt, which has time, is computed in between."""
    world = World(1)
    chat = world.arrival(0.0, 0, 1000, ttft_s=1.0, tpot_s=0.02)
    asked = world.arrival(2.0, 0, 50, ttft_s=20.0).request
    long = Arrival(replace(asked, n_prompt=100_000), 50)
    world.simulator.run([chat, long])
    assert world.records[chat.request.id].n_on_time == 1000
    assert world.records[long.request.id].n_on_time == 50
