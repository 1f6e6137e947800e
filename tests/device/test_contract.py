"""What every device promises, tested on each that can run here: completion, overlap, order, failure, and bytes that stay true.

A small instance over the device is driven by a scripted policy, so that each test says exactly which operations run.
"""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event

import pytest

from tokenmux.engine.core.cost import RooflineCost
from tokenmux.engine.core.errors import BadCheckpoint
from tokenmux.engine.core.event import Arrived, CopyDone, ModelAdded, StepDone
from tokenmux.engine.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.engine.core.message import Residency
from tokenmux.engine.core.plan import (
    IDLE,
    Activate,
    Channel,
    Chunk,
    Compact,
    Drop,
    Evict,
    Fetch,
    Operation,
    PageIn,
    PageOut,
    Plan,
    Step,
)
from tokenmux.engine.core.request import Request, RequestId
from tokenmux.engine.device.cpu import CpuDevice
from tokenmux.engine.device.interface import Completion, Device, Post
from tokenmux.engine.device.null import NullDevice, VirtualClock
from tokenmux.engine.instance.instance import Instance
from tokenmux.engine.instance.started import Started
from tokenmux.engine.memory.host_cache import HostCache
from tokenmux.engine.policy.interface import InstanceView
from tokenmux.engine.runtime.clock import MonotonicClock

KB = 1 << 10
FACTS = DeviceFacts(
    name="small",
    arena_bytes=640 * KB,
    host_kv_bytes=256 * KB,
    copy_in_bytes_per_s=1e9,
    copy_out_bytes_per_s=1e9,
    memory_bytes_per_s=1e9,
    flops_per_s=1e9,
    slab_bytes=64 * KB,
    prefill_chunk_tokens=16,
)
HOST = HostFacts(cache_bytes=1024 * KB, fetch_bytes_per_s=1e9)
SHAPE = KvShape(n_layers=2, n_kv_heads=2, head_dim=16, dtype_bytes=2, block_size=8)
WAIT_S = 10.0


def model(name: str, n_bytes: int) -> ModelFacts:
    return ModelFacts(ModelId(name), (Image(ImageId(name), n_bytes),), SHAPE, 64, 1000)


def request(name: str, of: str, n_prompt: int = 16) -> Request:
    return Request(RequestId(name), ModelId(of), n_prompt=n_prompt, max_tokens=32, arrival_s=0.0)


@dataclass
class Script:
    """A policy that plans what it was told, once, on the channel that it belongs to."""

    name: str = "script"
    plans: dict[Channel, Plan] = field(default_factory=dict)
    interrupt_on: type | None = None

    def on_event(self, event: object, view: InstanceView) -> None: ...

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        return self.plans.pop(channel, IDLE)

    def interrupts(self, step: Step, event: object, view: InstanceView) -> bool:
        return isinstance(event, self.interrupt_on) if self.interrupt_on else False


class FakeStep:
    """A step that stamps the KV of its requests and can be held up in the middle."""

    def __init__(self, host: "FakeHost", started: Started) -> None:
        self.host = host
        assert isinstance(started.operation, Step)
        self.repeat = started.operation.repeat

    def run(self, operation: int, interrupted: Event, post: Post) -> None:
        ends: list[float] = []
        while len(ends) < self.repeat:
            self.host.in_step.set()
            assert self.host.step_may_end.wait(WAIT_S)
            ends.append(self.host.clock.now_s())
            if interrupted.is_set():
                break
        if self.host.step_error is not None:
            raise self.host.step_error
        post.done(StepDone(ends[-1], operation, tuple(ends)))


class FakeHost:
    """Images of known bytes; steps that wait for the test."""

    def __init__(self, clock: MonotonicClock) -> None:
        self.clock = clock
        self.in_step = Event()
        self.step_may_end = Event()
        self.step_may_end.set()
        self.step_error: Exception | None = None
        self.bad_images: set[ImageId] = set()

    def read_image(self, image: Image, into: memoryview, progress: Callable[[int], None]) -> None:
        if image.id in self.bad_images:
            raise BadCheckpoint(f"{image.id} is cut off")
        into[:] = content(image)
        progress(image.n_bytes)

    def prepare_step(self, started: Started) -> FakeStep:
        return FakeStep(self, started)


def content(image: Image) -> bytes:
    return bytes((i * 7 + sum(image.id.encode())) % 251 for i in range(image.n_bytes))


class Bench:
    """One instance, one device, and a way to run one operation to its end."""

    def __init__(self, make: Callable[["Bench"], Device]) -> None:
        self.script = Script()
        self.clock = MonotonicClock()
        self.virtual = VirtualClock()
        self.host = FakeHost(self.clock)
        self.inbox: SimpleQueue[Completion | BaseException] = SimpleQueue()
        self.instance = Instance(FACTS, HostCache(HOST.cache_bytes), self.script, RooflineCost(FACTS, HOST))
        self.device = make(self)

    # the device's `Post`
    def done(self, completion: Completion) -> None:
        self.inbox.put(completion)

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None: ...
    def progress(self, operation: int, share: float) -> None: ...

    def broken(self, operation: int, error: BaseException) -> None:
        self.inbox.put(error)

    def add(self, *models: ModelFacts) -> None:
        for facts in models:
            self.instance.apply(ModelAdded(0.0, facts))

    def start(self, operation: Operation, *at_once: Evict | Drop) -> None:
        channels = {Fetch: Channel.FETCH, Step: Channel.COMPUTE, PageOut: Channel.COPY_OUT}
        self.script.plans[channels.get(type(operation), Channel.COPY_IN)] = Plan(operation, at_once)
        started = self.instance.decide(self.now_s())
        assert [s.operation for s in started] == [operation]
        self.device.start(started[0])

    def finish(self) -> Completion:
        """Wait for the next completion and enter it."""
        self.virtual.run()
        completion = self.inbox.get(timeout=WAIT_S)
        if isinstance(completion, BaseException):
            raise completion
        self.instance.apply(completion)
        return completion

    def run(self, operation: Operation, *at_once: Evict | Drop) -> Completion:
        self.start(operation, *at_once)
        return self.finish()

    def load(self, *names: str) -> None:
        for name in names:
            self.run(Fetch(ModelId(name)))
            self.run(Activate(ModelId(name)))

    def now_s(self) -> float:
        return self.virtual.now_s() if isinstance(self.device, NullDevice) else self.clock.now_s()


def make_null(bench: Bench) -> Device:
    left = lambda name: 32 - bench.instance.requests[name].n_drawn
    return NullDevice(bench.instance, RooflineCost(FACTS, HOST), bench.virtual, bench, left)


def make_cpu(bench: Bench) -> Device:
    return CpuDevice(FACTS, bench.instance.ledger, bench.clock, bench, bench.host)


@pytest.fixture(params=[make_null, make_cpu], ids=["null", "cpu"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.host.step_may_end.set()
    bench.device.close()


@pytest.fixture
def cpu() -> Iterator[Bench]:
    bench = Bench(make_cpu)
    yield bench
    bench.host.step_may_end.set()
    bench.device.close()


def test_every_operation_completes_once_and_the_books_balance(bench: Bench) -> None:
    bench.add(model("a", 200 * KB), model("b", 250 * KB))
    bench.load("a")
    bench.instance.apply(Arrived(bench.now_s(), request("r", "a")))
    step = bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    assert isinstance(step, StepDone)
    assert len(step.ends_s) == 1
    bench.run(PageOut((RequestId("r"),)))
    bench.run(Fetch(ModelId("b")), Drop(RequestId("r")))
    bench.run(Activate(ModelId("b")), Evict(ModelId("a")))
    assert bench.instance.models[ModelId("a")].residency is Residency.HOST
    bench.run(Activate(ModelId("a")))
    bench.run(PageIn((RequestId("r"),)))
    assert bench.instance.requests[RequestId("r")].kv.on_device
    bench.instance.check_integrity()
    assert bench.instance.is_idle


def test_a_repeated_step_reports_each_iteration(bench: Bench) -> None:
    bench.add(model("a", 200 * KB))
    bench.load("a")
    bench.instance.apply(Arrived(bench.now_s(), request("r", "a")))
    bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    done = bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 16, 1),), repeat=5))
    assert isinstance(done, StepDone)
    assert len(done.ends_s) == 5
    assert sorted(done.ends_s) == list(done.ends_s)
    assert bench.instance.requests[RequestId("r")].n_drawn == 6


def image_on_device(bench: Bench, facts: ModelFacts) -> bytes:
    assert isinstance(bench.device, CpuDevice)
    ledger = bench.instance.ledger
    offset = ledger.arena.offset(ledger.extent(facts.images[0].id))
    return ctypes.string_at(bench.device.arena.address + offset, facts.n_bytes)


def test_weights_arrive_whole_and_survive_compaction(cpu: Bench) -> None:
    a, b, c = model("a", 200 * KB), model("b", 150 * KB), model("c", 300 * KB)
    cpu.add(a, b, c)
    cpu.load("a", "b")
    cpu.run(Fetch(ModelId("c")))
    assert image_on_device(cpu, a) == content(a.images[0])
    cpu.run(Compact(c.n_bytes), Evict(ModelId("a")))
    assert cpu.instance.ledger.arena.offset(cpu.instance.ledger.extent(ImageId("b"))) == 0
    cpu.run(Activate(ModelId("c")))
    assert image_on_device(cpu, b) == content(b.images[0])
    assert image_on_device(cpu, c) == content(c.images[0])


def kv_on_device(bench: Bench, name: str) -> list[int]:
    """Addresses of the request's KV blocks."""
    assert isinstance(bench.device, CpuDevice)
    table = bench.instance.requests[RequestId(name)].kv
    index = bench.instance.ledger.blocks.block_index
    return [bench.device.arena.address + index(h) * SHAPE.block_bytes for h in table.device if h is not None]


def test_kv_comes_back_as_it_left(cpu: Bench) -> None:
    cpu.add(model("a", 200 * KB))
    cpu.load("a")
    for name in ("r", "other"):
        cpu.instance.apply(Arrived(cpu.now_s(), request(name, "a", n_prompt=40)))
        for start in (0, 16, 32):
            cpu.run(Step(ModelId("a"), (Chunk(RequestId(name), start, min(16, 40 - start)),)))
    written = [bytes([17 + i]) * SHAPE.block_bytes for i, _ in enumerate(kv_on_device(cpu, "r"))]
    for address, data in zip(kv_on_device(cpu, "r"), written, strict=True):
        ctypes.memmove(address, data, len(data))
    cpu.run(PageOut((RequestId("r"),)))
    before = kv_on_device(cpu, "r")
    cpu.run(PageOut((RequestId("other"),)), Drop(RequestId("r")))
    for address in before:
        ctypes.memset(address, 0xEE, SHAPE.block_bytes)
    cpu.run(PageIn((RequestId("r"),)))
    after = [ctypes.string_at(address, SHAPE.block_bytes) for address in kv_on_device(cpu, "r")]
    assert after == written


def test_copies_overlap_with_a_step(cpu: Bench) -> None:
    cpu.add(model("a", 200 * KB), model("b", 200 * KB))
    cpu.load("a")
    cpu.instance.apply(Arrived(cpu.now_s(), request("r", "a")))
    cpu.host.step_may_end.clear()
    cpu.start(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    assert cpu.host.in_step.wait(WAIT_S)
    cpu.run(Fetch(ModelId("b")))
    cpu.run(Activate(ModelId("b")))
    cpu.host.step_may_end.set()
    assert isinstance(cpu.finish(), StepDone)


def test_an_interrupted_burst_ends_after_its_present_iteration(cpu: Bench) -> None:
    cpu.add(model("a", 200 * KB))
    cpu.load("a")
    cpu.instance.apply(Arrived(cpu.now_s(), request("r", "a")))
    cpu.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    cpu.host.in_step.clear()
    cpu.host.step_may_end.clear()
    cpu.start(Step(ModelId("a"), (Chunk(RequestId("r"), 16, 1),), repeat=20))
    assert cpu.host.in_step.wait(WAIT_S)
    cpu.script.interrupt_on = Arrived
    cpu.instance.apply(Arrived(cpu.now_s(), request("second", "a")))
    assert cpu.instance.interrupted
    cpu.device.interrupt()
    cpu.host.step_may_end.set()
    done = cpu.finish()
    assert isinstance(done, StepDone)
    assert len(done.ends_s) == 1


def test_an_image_that_cannot_be_read_fails_its_requests_and_nothing_else(cpu: Bench) -> None:
    cpu.add(model("a", 200 * KB), model("bad", 100 * KB))
    cpu.load("a")
    cpu.host.bad_images.add(ImageId("bad"))
    cpu.instance.apply(Arrived(cpu.now_s(), request("good", "a")))
    cpu.instance.apply(Arrived(cpu.now_s(), request("doomed", "bad")))
    done = cpu.run(Fetch(ModelId("bad")))
    assert isinstance(done, CopyDone)
    assert "cut off" in done.error
    ended = cpu.instance.take_ended()
    assert [(record.request.id, detail) for record, detail in ended] == [("doomed", "bad is cut off")]
    assert RequestId("good") in cpu.instance.requests
    cpu.instance.check_integrity()


def test_a_step_that_raises_is_reported_and_the_channel_lives(cpu: Bench) -> None:
    cpu.add(model("a", 200 * KB))
    cpu.load("a")
    cpu.instance.apply(Arrived(cpu.now_s(), request("r", "a")))
    cpu.host.step_error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        cpu.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
