"""One simulation from beginning to end: models, a pool, a policy by name and a trace in, figures of merit
out."""

import gc
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf

from tokenmux.core.event import ModelWanted
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelFacts, ModelId
from tokenmux.core.plan import Channel
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import DEFAULT_LEVEL, FinishReason, Request, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.instance.request_state import RequestState
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.metrics.histogram import Histogram
from tokenmux.scheduler.metrics.summary import Summary, summarise
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy
from tokenmux.scheduler.policy.registry import make_policies
from tokenmux.simulator.architectures import Architecture, measured_as, paper_architecture
from tokenmux.simulator.doubts import SURE, Doubts
from tokenmux.simulator.hardware import (
    CACHE_BYTES_PER_HOST,
    CUT_TOKENS,
    DEVICES_PER_HOST,
    DISK_BYTES_PER_S,
    GB,
    HOST_COPY_BYTES_PER_S,
    HOST_KV_BYTES_PER_DEVICE,
    USABLE,
    gpu,
    instance_facts,
)
from tokenmux.simulator.profiles import ProfiledCost, step_fit
from tokenmux.simulator.simulator import OnEffects, Simulator
from tokenmux.simulator.step_file import StepFits, fit_for
from tokenmux.simulator.verdict import N_LOOKS, Verdict
from tokenmux.workload.trace import Arrival

Policies = Callable[[int], tuple[Sequence[InstancePolicy], PoolPolicy]]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a pool is built of: instances of `n_devices` GPUs each, and their hosts."""

    gpu: str = "H100"
    mixed: tuple[str, ...] = ()
    """The GPUs of the instances in turn, where they are not all `gpu`."""
    n_devices: int = 1
    """Devices per instance: more than one form a tensor-parallel group."""
    copy_bytes_per_s: float = HOST_COPY_BYTES_PER_S
    disk_bytes_per_s: float = DISK_BYTES_PER_S
    devices_per_host: int = DEVICES_PER_HOST
    host_cache_bytes: int = CACHE_BYTES_PER_HOST
    slower: float = 1.0
    """Multiplies all step times."""
    host_kv_bytes: int = HOST_KV_BYTES_PER_DEVICE
    """Per device."""
    usable: float = USABLE
    """Share of device memory that is managed; above 1, more memory than the device really has."""
    warm: bool = True
    """Host caches begin full of models; otherwise empty, and every model is read from disk first."""
    cut_tokens: int = CUT_TOKENS
    """Where prompts may be cut beside decode rows; that of a whole chunk for never."""
    steps: StepFits = ()
    """Step times that count instead of the measured ones, by model or architecture."""

    @property
    def instances_per_host(self) -> int:
        return max(1, self.devices_per_host // self.n_devices)

    def with_host_memory(self, n_bytes: int) -> "Hardware":
        """The same with this much memory in each host, of which paged-out KV gets as large a share as by
        default."""
        usual_kv_bytes = DEVICES_PER_HOST * HOST_KV_BYTES_PER_DEVICE
        kv_bytes = n_bytes * usual_kv_bytes // (CACHE_BYTES_PER_HOST + usual_kv_bytes)
        per_device = kv_bytes // self.devices_per_host
        cache_bytes = n_bytes - self.devices_per_host * per_device
        return replace(self, host_kv_bytes=per_device, host_cache_bytes=cache_bytes)

    def hosts_sentence(self) -> str:
        """What is assumed of the hosts, for people."""
        n_devices = self.instances_per_host * self.n_devices
        memory = (self.host_cache_bytes + n_devices * self.host_kv_bytes) / GB
        copies, disk = self.copy_bytes_per_s / GB, self.disk_bytes_per_s / GB
        return f"Hosts: {memory:g} GB for {n_devices} GPUs; {copies:g} GB/s to each, {disk:g} GB/s from disk."

    def of(self, index: int) -> "Hardware":
        """That of one instance alone."""
        return replace(self, gpu=self.mixed[index % len(self.mixed)], mixed=()) if self.mixed else self

    def instance(self, market: "Market") -> DeviceFacts:
        return instance_facts(
            gpu(self.gpu),
            self.n_devices,
            self.copy_bytes_per_s,
            self.host_kv_bytes,
            self.usable,
            max((facts.kv.block_bytes for facts in market.facts.values()), default=0),
            self.cut_tokens,
        )


@dataclass(frozen=True, slots=True)
class Market:
    """Models by name, each with the architecture whose step times it has."""

    facts: Mapping[ModelId, ModelFacts]
    architectures: Mapping[ModelId, str]

    @property
    def max_context(self) -> dict[ModelId, int]:
        return {model: facts.max_context for model, facts in self.facts.items()}


def market(architectures: Mapping[str, Architecture]) -> Market:
    """A market with one model for every name."""
    facts = {ModelId(name): kind.facts(name) for name, kind in architectures.items()}
    return Market(facts, {ModelId(name): measured_as(kind.name) for name, kind in architectures.items()})


def paper_market(names: Sequence[str]) -> Market:
    """Architectures in the order in which the Aegaeon artifact assigns them."""
    return market({name: paper_architecture(index) for index, name in enumerate(names)})


@dataclass(slots=True)
class Outcome:
    """The result of one simulation."""

    records: list[RequestRecord]
    refused: list[Request]
    arrivals: Sequence[Arrival]
    simulator: Simulator
    seconds: float
    """Virtual time until the last event."""
    span_s: float
    """Virtual time from 0 to the last arrival."""
    busy_at_span: dict[Channel, float] = field(default_factory=dict)
    n_tokens_not_drawn: int = 0
    """Tokens missing from requests that were not finished when the simulation stopped."""
    missed: bool = False
    """True if the simulation stopped because its goal was out of reach. Its other figures then mean
    nothing."""

    def summary(self, from_s: float = 0.0, to_s: float = float("inf")) -> Summary:
        """Figures over the requests that arrived in `[from_s, to_s)`. Refused requests count as late with
        all their tokens. Gaps, and tokens of unfinished requests, are those of the whole run."""
        records = [r for r in self.records if from_s <= r.request.arrival_s < to_s]
        refused = {r.id for r in self.refused if from_s <= r.arrival_s < to_s}
        lost = sum(a.n_output for a in self.arrivals if a.request.id in refused)
        gaps = Histogram()
        for instance in self.simulator.instances:
            for counters in instance.metrics.models.values():
                gaps.merge(counters.service.gaps)
        return summarise(records, lost + self.n_tokens_not_drawn, gaps, len(refused))

    def busy(self, channel: Channel) -> float:
        """Share of the arrival period during which the channel was busy, mean over instances."""
        return self.busy_at_span[channel]

    @property
    def n_swaps(self) -> int:
        return sum(c.n_swaps for i in self.simulator.instances for c in i.metrics.models.values())

    @property
    def swap_bytes(self) -> int:
        return sum(c.swap_bytes for i in self.simulator.instances for c in i.metrics.models.values())

    @property
    def prefix_hit_share(self) -> float:
        """Share of the tokens of all prompts whose KV other requests had computed."""
        n_prompt = sum(arrival.request.n_prompt for arrival in self.arrivals)
        services = [c.service for i in self.simulator.instances for c in i.metrics.models.values()]
        return sum(service.n_cached_prompt_tokens for service in services) / n_prompt if n_prompt else 0.0

    @property
    def n_steps(self) -> int:
        return sum(i.metrics.n_steps for i in self.simulator.instances)


def simulate(
    market: Market,
    arrivals: Sequence[Arrival],
    n_instances: int,
    policy: str | Policies = "slack",
    hardware: Hardware = Hardware(),
    on_effects: OnEffects | None = None,
    to_the_end: bool = True,
    goal: float | None = None,
    doubts: Doubts = SURE,
    pinned: Iterable[ModelId] = (),
) -> Outcome:
    """Replay `arrivals` (in order of time) on a pool of `n_instances`. Its own service level is that of the
    strictest quarter of the first requests.

    With `to_the_end` false it stops when the last of all tokens is due. Whatever is drawn later is late
    anyway, so the numbers of tokens and requests on time are the same, and a pool that is far too small need
    not work off its queue. A request without a token then counts as if its first token came at once.

    With a `goal` it stops as soon as less than this share of all tokens can be on time; the outcome is
    `missed` then. `doubts` make it more pessimistic than the measured step times. Models that are `pinned`
    are so from the beginning, where the pool pins them for an operator; DoesNotFit if there is no room.
    """
    kinds = [hardware.of(index) for index in range(n_instances)]
    devices = {kind.gpu: kind.instance(market) for kind in kinds}
    costs = {kind.gpu: true_cost(market, kind, devices[kind.gpu]) for kind in kinds}
    truths = [costs[kind.gpu] for kind in kinds]
    if isinstance(policy, str):
        lengths = {arrival.request.id: arrival.n_output for arrival in arrivals}
        policies, pool_policy = make_policies(policy, n_instances, lengths)
    else:
        policies, pool_policy = policy(n_instances)
    host = HostFacts(hardware.host_cache_bytes, hardware.disk_bytes_per_s)
    level = level_for(arrivals)
    caches = [_warm_cache(market, hardware) for _ in range(-(-n_instances // hardware.instances_per_host))]
    instances = [
        Instance(
            devices[kinds[i].gpu],
            caches[i // hardware.instances_per_host],
            policies[i],
            RooflineCost(devices[kinds[i].gpu], host) if doubts.learned else truths[i],
            service=level,
        )
        for i in range(n_instances)
    ]
    simulator = Simulator(instances, truths, pool_policy, market.facts, on_effects, doubts)
    pinned = list(pinned)
    for facts in market.facts.values() if pinned else ():
        simulator.pool.add_model(facts)  # or a pin may take the room that another one needs
    for model in pinned:
        simulator.apply(simulator.pool.pin_target(model), ModelWanted(0.0, model, pinned=True))
    records = simulator.records
    span_s = arrivals[-1].request.arrival_s if arrivals else 0.0
    with _rare_collections():
        missed = goal is not None and _run_towards(goal, simulator, arrivals, records, span_s)
        if goal is None:
            simulator.run(arrivals, until_s=span_s)
        busy = {c: _busy_share(instances, c, span_s) for c in Channel}
        if not missed:
            last_due_s = max((_last_due_s(a) for a in arrivals), default=0.0)
            simulator.run([], until_s=inf if to_the_end else last_due_s)
            simulator.run([], until_s=inf if to_the_end else simulator.steps_end_s)
    records += [_unfinished(state, simulator.now_s) for i in instances for state in i.requests.values()]
    n_output = {arrival.request.id: arrival.n_output for arrival in arrivals}
    not_drawn = sum(n_output[state.id] - state.n_drawn for i in instances for state in i.requests.values())
    refused = [request for request, _ in simulator.refused]
    return Outcome(records, refused, arrivals, simulator, simulator.now_s, span_s, busy, not_drawn, missed)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look for cycles rarely: a simulation makes many values that live long, and
    no cycles but its own. Worth 5% of its time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _run_towards(
    goal: float,
    simulator: Simulator,
    arrivals: Sequence[Arrival],
    records: Sequence[RequestRecord],
    span_s: float,
) -> bool:
    """Run until the last arrival, or until the goal is out of reach. True if it is out of reach."""
    verdict = Verdict(goal, arrivals, records)
    done = 0
    for look in range(1, N_LOOKS + 1):
        until_s = span_s * look / N_LOOKS if look < N_LOOKS else span_s
        end = bisect_right(arrivals, until_s, lo=done, key=lambda arrival: arrival.request.arrival_s)
        simulator.run(arrivals[done:end], until_s=until_s)
        done = end
        if verdict.is_missed(simulator):
            return True
    return False


def level_for(arrivals: Sequence[Arrival]) -> ServiceLevel:
    """The service level of a pool for this traffic: what a quarter of the first hundred requests ask for, or
    less, by TTFT.

    By the median, loads were measured by batch requests as soon as these were in the majority, and models of
    interactive ones were spread and moved as if nothing were asked of them.
    """
    levels = sorted((a.request.service for a in arrivals[:101]), key=lambda s: (s.ttft_s, s.tpot_s))
    return levels[len(levels) // 4] if levels else DEFAULT_LEVEL


def _last_due_s(arrival: Arrival) -> float:
    return arrival.request.deadline_s(arrival.n_output - 1)


def _unfinished(state: RequestState, now_s: float) -> RequestRecord:
    """The record of a request that is still live: what is certain by now, late tokens included."""
    first_s = now_s if state.first_token_s is None else state.first_token_s
    return RequestRecord(
        state.request,
        FinishReason.FAILED,
        first_s,
        now_s,
        state.last_token_s,
        state.n_drawn,
        state.n_on_time,
        state.artifact.late_s,
    )


def true_cost(market: Market, hardware: Hardware, device: DeviceFacts) -> ProfiledCost:
    fits = [
        (
            facts,
            fit_for(hardware.steps, model, market.architectures[model])
            or step_fit(gpu(hardware.gpu), hardware.n_devices, market.architectures[model], facts),
        )
        for model, facts in market.facts.items()
    ]
    return ProfiledCost(device, fits, hardware.disk_bytes_per_s, hardware.slower)


def _warm_cache(market: Market, hardware: Hardware) -> HostCache:
    """A warm host cache: full of models, the first of the market first. An empty one if the hardware is not
    warm."""
    cache = HostCache(hardware.host_cache_bytes)
    for facts in market.facts.values() if hardware.warm else ():
        if cache.used_bytes + facts.n_bytes <= cache.capacity:
            cache.end_fetch(cache.begin_fetch(facts.images)[0], ok=True)
    return cache


def _busy_share(instances: Sequence[Instance], channel: Channel, span_s: float) -> float:
    busy_s = sum(instance.metrics.busy_s[channel] for instance in instances)
    return min(1.0, busy_s / len(instances) / span_s) if span_s else 0.0
