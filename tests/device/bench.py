"""A small instance over one device, driven by a scripted policy, so that each test says exactly which
operations run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event

import pytest
import torch

from tests.device.cuda.fake_gpu import FakeGpu
from tokenmux.core.effects import Effect, operations_started
from tokenmux.core.errors import BadCheckpoint
from tokenmux.core.event import ModelAdded, StepDone
from tokenmux.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.plan import (
    Activate,
    Channel,
    Drop,
    Evict,
    Fetch,
    Operation,
    PageOut,
    Plan,
    Step,
)
from tokenmux.core.request import RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.started import StartedStep
from tokenmux.device.cpu import CpuDevice
from tokenmux.device.cuda.device import CudaDevice
from tokenmux.device.cuda.gpu import Gpu, TorchGpu
from tokenmux.device.cuda.paging import KvDtype
from tokenmux.device.device_protocol import Device, OperationDone, Post
from tokenmux.executor.monotonic_clock import MonotonicClock
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.simulator.virtual_device import VirtualDevice
from tokenmux.testing import ScriptedPolicy, make_instance, make_model

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


model = partial(make_model, kv=SHAPE, n_parameters=1000)


class FakeStep:
    """A step that can be held up in the middle, and stamps the KV of the tokens that it adds."""

    def __init__(self, host: "FakeHost", started: StartedStep) -> None:
        self.host = host
        self.repeat = started.operation.repeat
        ledger = host.bench.instance.ledger
        self.blocks = []
        self.tokens = []
        for chunk in started.operation.chunks:
            table = ledger.kv[chunk.request]
            indices = [ledger.blocks.block_index(h) for h in table.device if h is not None]
            self.blocks.append((indices, chunk.start))
            self.tokens += [(indices, p) for p in range(chunk.start, chunk.start + chunk.n_tokens)]

    def kv_blocks(self) -> list[tuple[list[int], int]]:
        return self.blocks

    def run(self, operation: int, interrupted: Event, post: Post, settle: Callable[[], None]) -> None:
        ends: list[float] = []
        while len(ends) < self.repeat:
            self.host.in_step.set()
            assert self.host.step_may_end.wait(WAIT_S)
            for indices, first in self.tokens:
                position = first + len(ends)
                block, token = divmod(position, SHAPE.block_size)
                self.host.bench.kv_view[indices[block], :, :, :, token] = stamp(position)
            settle()
            ends.append(self.host.clock.now_s())
            if interrupted.is_set():
                break
        if self.host.step_error is not None:
            raise self.host.step_error
        post.done(StepDone(ends[-1], operation, tuple(ends)))


class FakeHost:
    """Images of known bytes; steps that wait for the test."""

    def __init__(self, bench: "Bench", clock: MonotonicClock) -> None:
        self.bench = bench
        self.clock = clock
        self.in_step = Event()
        self.step_may_end = Event()
        self.step_may_end.set()
        self.may_read = Event()
        self.may_read.set()
        self.step_error: Exception | None = None
        self.bad_images: set[ImageId] = set()

    def read_image(self, image: Image, into: memoryview, progress: Callable[[int], None]) -> None:
        if image.id in self.bad_images:
            raise BadCheckpoint(f"{image.id} is cut off")
        assert self.may_read.wait(WAIT_S)
        into[:] = content(image)
        progress(image.n_bytes)

    def prepare_step(self, started: StartedStep) -> FakeStep:
        return FakeStep(self, started)

    def attach(self, arena: torch.Tensor) -> None: ...


def stamp(position: int) -> int:
    """What a step writes into all bytes of a token's keys and values."""
    return 1 + position % 250


def content(image: Image) -> bytes:
    return bytes((i * 7 + sum(image.id.encode())) % 251 for i in range(image.n_bytes))


class Bench:
    """One instance, one device, and a way to run one operation to its end."""

    def __init__(self, make: Callable[["Bench"], Device]) -> None:
        self.script = ScriptedPolicy()
        self.clock = MonotonicClock()
        self.virtual = VirtualClock()
        self.host = FakeHost(self, self.clock)
        self.inbox: SimpleQueue[OperationDone | BaseException] = SimpleQueue()
        self.instance = make_instance(FACTS, self.script, HOST)
        self.effects: list[Effect] = []
        """Of the completions that were entered."""
        self.device = make(self)

    # the device's `Post`
    def done(self, completion: OperationDone) -> None:
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
        started = operations_started(self.instance.decide(self.now_s()))
        assert [s.operation for s in started] == [operation]
        self.device.start(started[0])

    def finish(self) -> OperationDone:
        """Wait for the next completion and enter it."""
        self.virtual.run()
        completion = self.inbox.get(timeout=WAIT_S)
        if isinstance(completion, BaseException):
            raise completion
        self.effects += self.instance.apply(completion)
        return completion

    def run(self, operation: Operation, *at_once: Evict | Drop) -> OperationDone:
        self.start(operation, *at_once)
        return self.finish()

    def load(self, *names: str) -> None:
        for name in names:
            self.run(Fetch(ModelId(name)))
            self.run(Activate(ModelId(name)))

    def now_s(self) -> float:
        return self.virtual.now_s() if isinstance(self.device, VirtualDevice) else self.clock.now_s()

    # what lies on the device, between operations

    @property
    def arena(self) -> torch.Tensor:
        arena = getattr(self.device, "arena", None)
        assert arena is not None, "a device that has bytes shows them as `arena`"
        return arena if isinstance(arena, torch.Tensor) else arena.as_tensor()

    @property
    def kv_view(self) -> torch.Tensor:
        """The arena as bytes `[block, layer, k|v, head, token, byte]`."""
        n_blocks = self.arena.numel() // SHAPE.block_bytes
        blocks = self.arena[: n_blocks * SHAPE.block_bytes]
        return blocks.view(n_blocks, SHAPE.n_layers, 2, SHAPE.n_kv_heads, SHAPE.block_size, -1)

    def overwrite(self, blocks: list[int]) -> None:
        """Write something else into these blocks, behind the device's back."""
        self.kv_view[blocks] = 0xEE
        if self.arena.is_cuda:
            torch.cuda.synchronize()

    def image_on_device(self, facts: ModelFacts) -> bytes:
        ledger = self.instance.ledger
        offset = ledger.arena.offset(ledger.extent(facts.images[0].id))
        return bytes(self.arena[offset : offset + facts.n_bytes].tolist())

    def blocks_of(self, name: str) -> list[int]:
        """Indices of the request's KV blocks."""
        table = self.instance.requests[RequestId(name)].kv
        return [self.instance.ledger.blocks.block_index(h) for h in table.device if h is not None]

    def stamps(self, name: str, n_tokens: int) -> list[list[int]]:
        """The different bytes in the KV of each token of a request."""
        kv = self.kv_view[self.blocks_of(name)]
        tokens = (
            kv[position // SHAPE.block_size, :, :, :, position % SHAPE.block_size]
            for position in range(n_tokens)
        )
        return [torch.unique(token).tolist() for token in tokens]


def make_null(bench: Bench) -> Device:
    left = lambda name: 32 - bench.instance.requests[name].n_drawn
    return VirtualDevice(bench.instance, RooflineCost(FACTS, HOST), bench.virtual, bench, left)


def make_cpu(bench: Bench) -> Device:
    return CpuDevice(FACTS, bench.instance.ledger, bench.clock, bench, bench.host)


@dataclass(frozen=True)
class Paging:
    """How the CUDA device pages blocks: without an overhead the copy engines page all of them, and with a
    long one a kernel does."""

    copy_overhead_s: float = 0.0
    kv_dtype: KvDtype | None = None


ENGINES = Paging()
KERNEL = Paging(copy_overhead_s=1.0)
INT8 = Paging(kv_dtype=lambda _: torch.float16)
"""A token whose numbers are all the same comes back exactly, so `stamp` does."""


def cuda_over(gpu: Gpu, bench: Bench, paging: Paging = ENGINES, chunk_bytes: int = 16 * KB) -> CudaDevice:
    """With chunks so small that everything here takes several."""
    return CudaDevice(
        FACTS,
        bench.instance.ledger,
        bench.clock,
        bench,
        bench.host,
        gpu,
        chunk_bytes=chunk_bytes,
        locked_chunk_bytes=chunk_bytes,
        page_bytes=16 * KB,
        lock_bytes=24 * KB,
        copy_overhead_s=paging.copy_overhead_s,
        kv_dtype=paging.kv_dtype,
    )


def fake(paging: Paging, *, lockable: bool = True) -> Callable[[Bench], Device]:
    return lambda bench: cuda_over(FakeGpu(lockable=lockable), bench, paging)


def real(paging: Paging) -> Callable[[Bench], Device]:
    return lambda bench: cuda_over(TorchGpu(), bench, paging)


@contextmanager
def bench_of(make: Callable[[Bench], Device]) -> Iterator[Bench]:
    bench = Bench(make)
    try:
        yield bench
    finally:
        bench.host.step_may_end.set()
        bench.device.close()


GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
WITH_BYTES = [
    pytest.param(make_cpu, id="cpu"),
    pytest.param(fake(ENGINES), id="cuda (fake streams)"),
    pytest.param(fake(ENGINES, lockable=False), id="cuda (fake streams, nothing page-locked)"),
    pytest.param(fake(KERNEL), id="cuda (fake streams, paging by kernel)"),
    pytest.param(
        fake(KERNEL, lockable=False), id="cuda (fake streams, paging by kernel, nothing page-locked)"
    ),
    pytest.param(fake(INT8), id="cuda (fake streams, paging in int8)"),
    pytest.param(fake(INT8, lockable=False), id="cuda (fake streams, paging in int8, nothing page-locked)"),
    pytest.param(real(ENGINES), id="cuda", marks=GPU),
    pytest.param(real(KERNEL), id="cuda (paging by kernel)", marks=GPU),
    pytest.param(real(INT8), id="cuda (paging in int8)", marks=GPU),
]
ALL = [pytest.param(make_null, id="null"), *WITH_BYTES]
