"""Pools on virtual time to which anything may happen: devices come, go, drain, break and change their size,
while clients come, pause and give up."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tokenmux.core.effects import Effects, RequestEnded, RequestEntered, StepEnded
from tokenmux.core.errors import DoesNotFit, InUse
from tokenmux.core.event import Cancelled, ModelWanted, Paused, ResizeAsked, Resumed
from tokenmux.core.facts import DeviceFacts, ModelFacts
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.metrics.counters import Metrics
from tokenmux.scheduler.policy.baselines.request_level import OneModelPerInstance
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.registry import make_policy
from tokenmux.simulator.simulator import Simulator
from tokenmux.testing import make_arrival, make_device, make_host, make_model
from tokenmux.workload.trace import Arrival

HOST = make_host(cache_bytes=4_500)
MODELS = [
    make_model(name, n_bytes)
    for name, n_bytes in zip("abcdef", (600, 1000, 1400, 900, 700, 1100), strict=True)
]


def slow_device(arena_bytes: int, host_kv_bytes: int = 10_000) -> DeviceFacts:
    """A device that takes 20 ms for a token, so that much can happen meanwhile."""
    return make_device(arena_bytes, host_kv_bytes, step_overhead_s=0.02)


class World:
    """A pool whose instances share a host, and memory for KV too if `host_kv_bytes` are given. Each has the
    policy named `policy`."""

    def __init__(
        self,
        devices: Sequence[DeviceFacts],
        models: Sequence[ModelFacts] = MODELS,
        host_kv_bytes: int | None = None,
        policy: str = "slack",
        pool_policy: LeastLoaded | OneModelPerInstance | None = None,
    ) -> None:
        self._policy_name = policy
        self.host_kv = None if host_kv_bytes is None else HostKv(host_kv_bytes, slab_bytes=512)
        self.kept: dict[RequestId, list[int]] = {}
        """Number of tokens whose KV each request brought along, for every time it arrived."""
        self.cache = HostCache(HOST.cache_bytes)
        self.policy = pool_policy or LeastLoaded()
        self.entered: dict[RequestId, list[int]] = {}
        """Where each request has been, in order."""
        self.drawn: Counter[RequestId] = Counter()
        """How many tokens each request has drawn, by the steps that ended."""
        self.ended: Counter[RequestId] = Counter()
        self.simulator = Simulator(
            [self.instance(device) for device in devices],
            [RooflineCost(device, HOST) for device in devices],
            self.policy,
            {model.id: model for model in models},
            self._note,
        )
        self.pool = self.simulator.pool
        self.clock = self.simulator.clock

    def instance(self, device: DeviceFacts, metrics: Metrics | None = None) -> Instance:
        cost = RooflineCost(device, HOST)
        policy = make_policy(self._policy_name)
        return Instance(device, self.cache, policy, cost, host_kv=self.host_kv, metrics=metrics)

    def at(self, at_s: float, call: Callable[[], object]) -> None:
        """Have this happen then, and the pool settle."""

        def happen() -> None:
            call()
            self.pool.settle()
            self.pool.check_integrity()

        self.clock.call_at(at_s, happen)

    def lose(self, index: int, held_s: float | None = 0.0) -> None:
        """Lose a device. The next one is there after `held_s`; None: at once."""
        lost = self.simulator.instances[index]
        if held_s is not None:
            self.pool.hold(index)
            self.at(self.clock.now_s() + held_s, lambda: self.pool.release(index))
        self.simulator.replace(index, self.instance(lost.device, lost.metrics))

    def add(self, device: DeviceFacts, held: bool = False) -> int:
        return self.simulator.add(self.instance(device), RooflineCost(device, HOST), held=held)

    def finish(self, arrivals: Sequence[Arrival] = ()) -> None:
        """Run until all is over, and check that nothing is left."""
        self.simulator.run(arrivals)
        self.pool.check_integrity()
        assert not self.cache.held
        assert not self.cache.fetching
        assert self.policy.n_remembered == 0
        assert set(self.ended.values()) <= {1}, "a request ended twice"
        for record in self.simulator.records:
            assert record.n_tokens == self.drawn[record.request.id], "a token was lost, or drawn twice"
            assert record.n_on_time <= record.n_tokens
        for index, instance in enumerate(self.simulator.instances):
            assert self.pool.is_empty(index)
            assert not instance.ledger.host_blocks.used_bytes
            assert not instance.ledger.host_kv.parked

    def _note(self, index: int, at_s: float, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case RequestEntered(request):
                    self.entered.setdefault(request.id, []).append(index)
                    table = self.simulator.instances[index].ledger.kv[request.id]
                    self.kept.setdefault(request.id, []).append(table.n_computed)
                case RequestEnded(record):
                    self.ended[record.request.id] += 1
                case StepEnded(started, done, rows):
                    for chunk, row in zip(started.operation.chunks, rows, strict=True):
                        self.drawn[chunk.request] += row.draws * len(done.ends_s)
                case _:
                    pass


@dataclass
class Fates:
    """What befalls a world with this seed."""

    seed: int
    policy: str = "slack"
    pool_policy: LeastLoaded | OneModelPerInstance | None = None

    def run(self) -> Counter[str]:
        """Let it happen, check the end, and say how often each thing happened."""
        self.random = random = Random(self.seed)
        self.seen: Counter[str] = Counter()
        sizes = (3_000, 4_000, 6_000)
        devices = [
            slow_device(random.choice(sizes), random.choice((0, 1_024, 4_096)))
            for _ in range(random.randint(1, 4))
        ]
        devices[0] = slow_device(max(sizes))
        host_kv_bytes = random.choice((None, 0, 1_024, 8_192))
        self.world = world = World(
            devices, host_kv_bytes=host_kv_bytes, policy=self.policy, pool_policy=self.pool_policy
        )
        arrivals = [
            make_arrival(
                f"r{i}",
                random.choice(MODELS),
                random.randint(1, 30),
                n_output=random.randint(1, 34),
                arrival_s=random.uniform(0, 4),
            )
            for i in range(random.randint(20, 60))
        ]
        arrivals.sort(key=lambda arrival: arrival.request.arrival_s)
        self.requests = [arrival.request for arrival in arrivals]
        self.cancelled: set[RequestId] = set()
        for _ in range(random.randint(10, 40)):
            fate = random.choice(
                (
                    self.cancel,
                    self.pause,
                    self.lose,
                    self.lose,
                    self.drain,
                    self.undrain,
                    self.add,
                    self.remove,
                    self.resize,
                    self.pin,
                )
            )
            world.at(random.uniform(0, 6), fate)
        world.at(6.5, self.end_all_pauses)
        world.finish(arrivals)
        self.check(arrivals)
        return self.seen

    def check(self, arrivals: Sequence[Arrival]) -> None:
        refused = {request.id for request, _ in self.world.simulator.refused}
        n_output = {arrival.request.id: arrival.n_output for arrival in arrivals}
        assert self.world.ended.keys() | refused == n_output.keys()
        assert not self.world.ended.keys() & refused
        for record in self.world.simulator.records:
            request = record.request.id
            if request in self.cancelled and record.reason is FinishReason.CANCELLED:
                assert record.n_tokens <= n_output[request]
            else:
                assert record.n_tokens == n_output[request]
        self.seen["refused"] += len(refused)
        self.seen["went on elsewhere"] += sum(len(set(w)) > 1 for w in self.world.entered.values())
        self.seen["kept KV"] += sum(any(kept) for kept in self.world.kept.values())
        self.seen["came back"] += sum(len(set(w)) < len(w) for w in self.world.entered.values())

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────

    def cancel(self) -> None:
        request = self.any_request()
        self.cancelled.add(request.id)
        self.seen["cancelled"] += self.world.pool.has(request.id)
        self.world.pool.apply_to_request(Cancelled(self.world.clock.now_s(), request.id))

    def pause(self) -> None:
        request = self.any_request()
        self.seen["paused"] += self.world.pool.has(request.id)
        self.world.pool.apply_to_request(Paused(self.world.clock.now_s(), request.id))
        if self.random.random() < 0.5:
            self.world.at(self.world.clock.now_s() + self.random.uniform(0, 1), lambda: self.resume(request))

    def resume(self, request: Request) -> None:
        self.world.pool.apply_to_request(Resumed(self.world.clock.now_s(), request.id))

    def end_all_pauses(self) -> None:
        """Let everything that could stand in somebody's way end."""
        for index in range(len(self.world.simulator.instances)):
            self.world.pool.undrain(index)
        for request in self.requests:
            self.resume(request)

    def lose(self) -> None:
        index = self.any_present()
        held_s = self.random.choice((None, 0.0, 0.3))
        if index in self.world.pool.held:
            held_s = None
        self.seen["lost with requests"] += bool(self.world.simulator.instances[index].requests)
        self.world.lose(index, held_s)

    def drain(self) -> None:
        """Also what should not be drained: then its requests wait."""
        index = self.any_present()
        try:
            self.world.pool.check_drainable(index)
        except DoesNotFit:
            self.seen["drained in spite of all"] += 1
        self.world.pool.drain(index)
        self.seen["drained"] += 1

    def undrain(self) -> None:
        self.world.pool.undrain(self.any_present())

    def add(self) -> None:
        device = slow_device(self.random.choice((3_000, 4_000, 6_000)), 2_048)
        if self.random.random() < 0.5:
            self.world.add(device)
        else:
            index = self.world.add(device, held=True)
            self.world.at(self.world.clock.now_s() + 0.3, lambda: self.world.pool.release(index))
        self.seen["added"] += 1

    def remove(self) -> None:
        index = self.any_present()
        if index == 0:
            return
        try:
            self.world.simulator.remove(index)
            self.seen["removed"] += 1
        except InUse:
            self.drain()
            self.seen["not removed"] += 1

    def resize(self) -> None:
        index = self.any_present()
        arena_bytes = self.random.choice((1_500, 4_000, 6_000, 9_000))
        try:
            self.world.pool.check_resizable(index, arena_bytes)
        except (DoesNotFit, InUse):
            self.seen["not resized"] += 1
        else:
            self.world.pool.apply(index, ResizeAsked(self.world.clock.now_s(), arena_bytes))
            self.seen["resized"] += 1

    def pin(self) -> None:
        index = self.any_present()
        instance = self.world.simulator.instances[index]
        if instance.models:
            model = self.random.choice(sorted(instance.models))
            try:
                instance.check_pinnable(model)
            except (DoesNotFit, InUse):
                return
            pinned = self.random.random() < 0.5
            self.world.pool.apply(index, ModelWanted(self.world.clock.now_s(), model, pinned=pinned))
            self.seen["pinned"] += pinned

    def any_request(self) -> Request:
        """A live one, if there is one."""
        live = [request for request in self.requests if self.world.pool.has(request.id)]
        return self.random.choice(live or self.requests)

    def any_present(self) -> int:
        return self.random.choice(self.world.pool.present)
