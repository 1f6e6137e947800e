"""A small instance over one device, driven by a scripted policy, so that each test says exactly which
operations run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event

import pytest
import torch

from tests.device.cuda.fake_gpu import FakeGpu
from tests.device.launching import launch_of
from tokenmux.core.effects import Effect, operations_started
from tokenmux.core.errors import BadCheckpoint
from tokenmux.core.event import CopyDone, ModelAdded, StepDone
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
from tokenmux.core.started import Started, StartedFetch
from tokenmux.device.cpu import CpuDevice
from tokenmux.device.cuda.device import CudaDevice
from tokenmux.device.cuda.gpu import Gpu, TorchGpu
from tokenmux.device.device_protocol import LaunchReport, Post
from tokenmux.device.memory import SharedMemory
from tokenmux.messages.completions import CopyCompleted, StepCompleted
from tokenmux.messages.launches import OperationId, StepLaunch
from tokenmux.processes import shared_memory
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.simulator.virtual_clock import VirtualClock
from tokenmux.simulator.virtual_device import VirtualDevice
from tokenmux.testing import ScriptedPolicy, make_instance, make_model

RealDevice = CpuDevice | CudaDevice
AnyDevice = RealDevice | VirtualDevice
OperationDone = StepDone | CopyDone

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

    def __init__(self, host: "FakeHost", launch: StepLaunch) -> None:
        self.host = host
        self.launch = launch
        self.tokens = [
            (segment.blocks, position)
            for segment in launch.segments
            for position in range(segment.start, segment.start + len(segment.token_ids))
        ]

    def run(self, stop: Event, post: Post, settle: Callable[[], None]) -> None:
        ends: list[float] = []
        while len(ends) < self.launch.repeat:
            self.host.in_step.set()
            assert self.host.step_may_end.wait(WAIT_S)
            for indices, first in self.tokens:
                position = first + len(ends)
                block, token = divmod(position, SHAPE.block_size)
                self.host.bench.kv_view[indices[block], :, :, :, token] = stamp(position)
            settle()
            ends.append(self.host.clock.now_s())
            if stop.is_set():
                break
        if self.host.step_error is not None:
            raise self.host.step_error
        post.tell(StepCompleted(self.launch.operation, tuple(ends), ()))


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
        self.adopted: list[ImageId] = []

    def read_image(
        self, model: ModelId, image: Image, into: memoryview, progress: Callable[[int], None]
    ) -> None:
        assert image.id == model
        if image.id in self.bad_images:
            raise BadCheckpoint(f"{image.id} is cut off")
        assert self.may_read.wait(WAIT_S)
        into[:] = content(image)
        progress(image.n_bytes)

    def adopt_image(self, image: ImageId, content: memoryview, opened: Callable[[], None]) -> None:
        assert self.may_read.wait(WAIT_S)
        opened()
        if image in self.bad_images:
            raise BadCheckpoint(f"{image} is cut off")
        self.adopted.append(image)

    def prepare_step(self, launch: StepLaunch) -> FakeStep:
        return FakeStep(self, launch)

    def kv_shape(self, model: ModelId) -> KvShape:
        return SHAPE

    def kv_dtype(self, model: ModelId) -> torch.dtype:
        return torch.float16

    def weights_span(self, model: ModelId) -> tuple[int, int]:
        facts = self.bench.instance.models[model].facts
        start = offset_of(self.bench.instance.ledger, facts.images[0].id)
        return start, start + facts.n_bytes

    def detach(self) -> None: ...
    def attach(self, arena: torch.Tensor) -> None: ...


def offset_of(ledger: Ledger, image: ImageId) -> int:
    """Where an image is in the arena."""
    return ledger.arena.offset(ledger.extent(image))


def make_host_kv() -> SharedMemory:
    """Memory for paged-out KV, as a node gives it to its executors."""
    descriptor = shared_memory.create_shared("host-kv", FACTS.host_kv_bytes)
    try:
        return SharedMemory(descriptor, FACTS.host_kv_bytes)
    finally:
        os.close(descriptor)


def stamp(position: int) -> int:
    """What a step writes into all bytes of a token's keys and values."""
    return 1 + position % 250


def content(image: Image) -> bytes:
    return bytes((i * 7 + sum(image.id.encode())) % 251 for i in range(image.n_bytes))


class Bench:
    """One instance, one device, and a way to run one operation to its end."""

    def __init__(self, make: Callable[["Bench"], AnyDevice]) -> None:
        self.script = ScriptedPolicy()
        self.clock = MonotonicClock()
        self.virtual = VirtualClock()
        self.host = FakeHost(self, self.clock)
        self.inbox: SimpleQueue[OperationDone | BaseException] = SimpleQueue()
        self.instance = make_instance(FACTS, self.script, HOST)
        self.effects: list[Effect] = []
        """Of the completions that were entered."""
        self.fetches: dict[int, StartedFetch] = {}
        self.made = make(self)

    @property
    def device(self) -> RealDevice:
        assert not isinstance(self.made, VirtualDevice)
        return self.made

    # the device's `Post`
    def tell(self, report: LaunchReport) -> None:
        match report:
            case StepCompleted(operation, ends_s):
                self.inbox.put(StepDone(ends_s[-1], operation, ends_s))
            case CopyCompleted(operation, at_s, error, superseded=superseded):
                self.inbox.put(CopyDone(at_s, operation, error, superseded=superseded))
            case _:
                pass

    def broken(self, operation: int, error: BaseException) -> None:
        self.inbox.put(error)

    def done(self, completion: OperationDone) -> None:
        """The virtual device's."""
        self.inbox.put(completion)

    def add(self, *models: ModelFacts) -> None:
        for facts in models:
            self.instance.apply(ModelAdded(0.0, facts))

    def start(self, operation: Operation, *at_once: Evict | Drop) -> None:
        channels = {Fetch: Channel.FETCH, Step: Channel.COMPUTE, PageOut: Channel.COPY_OUT}
        self.script.plans[channels.get(type(operation), Channel.COPY_IN)] = Plan(operation, at_once)
        started = operations_started(self.instance.decide(self.now_s()))
        assert [s.operation for s in started] == [operation]
        self.carry_out(started[0])

    def carry_out(self, started: Started) -> None:
        """What a node has its executor do."""
        if isinstance(self.made, VirtualDevice):
            self.made.start(started)
            return
        if isinstance(started, StartedFetch):
            self.fetches[started.id] = started
            for dropped in started.dropped:
                self.made.unmap_image(dropped)
            for image in started.images:
                self.map(image, filled=False)
        requests = self.instance.requests
        self.made.start(launch_of(started, self.instance.ledger, lambda name: requests[name].request.model))

    def map(self, image: Image, *, filled: bool) -> None:
        """Give the device memory for an image, with its bytes in it if it is `filled`."""
        descriptor = shared_memory.create_shared("image", image.n_bytes)
        if filled:
            os.pwrite(descriptor, content(image), 0)
        self.device.map_image(image.id, image.n_bytes, descriptor, filled=filled)

    def stop_copy(self, operation: int) -> None:
        if isinstance(self.made, VirtualDevice):
            self.made.supersede(operation)
        else:
            self.made.stop_copy(OperationId(operation))

    @contextmanager
    def held(self, channel: Channel) -> Iterator[None]:
        """Nothing that is started in the block begins before its end."""
        if isinstance(self.made, VirtualDevice):
            yield
            return
        may_go_on = Event()
        self.made._channels[channel].submit(0, lambda: may_go_on.wait(WAIT_S))
        yield
        may_go_on.set()

    def finish(self) -> OperationDone:
        """Wait for the next completion and enter it."""
        self.virtual.run()
        completion = self.inbox.get(timeout=WAIT_S)
        if isinstance(completion, BaseException):
            raise completion
        self.effects += self.instance.apply(completion)
        fetch = self.fetches.pop(completion.operation, None)
        if fetch is not None and isinstance(completion, CopyDone) and not completion.ok:
            for image in fetch.images:
                self.device.unmap_image(image.id)
        return completion

    def run(self, operation: Operation, *at_once: Evict | Drop) -> OperationDone:
        self.start(operation, *at_once)
        return self.finish()

    def load(self, *names: str) -> None:
        for name in names:
            self.run(Fetch(ModelId(name)))
            self.run(Activate(ModelId(name)))

    def now_s(self) -> float:
        return self.virtual.now_s() if isinstance(self.made, VirtualDevice) else self.clock.now_s()

    # what lies on the device, between operations

    @property
    def arena(self) -> torch.Tensor:
        arena = self.device.arena
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
        offset = offset_of(self.instance.ledger, facts.images[0].id)
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


def make_null(bench: Bench) -> VirtualDevice:
    left = lambda name: 32 - bench.instance.requests[name].n_drawn
    return VirtualDevice(bench.instance, RooflineCost(FACTS, HOST), bench.virtual, bench, left)


def make_cpu(bench: Bench) -> CpuDevice:
    return CpuDevice(FACTS, make_host_kv(), bench.clock, bench, bench.host)


@dataclass(frozen=True)
class Paging:
    """How the CUDA device pages blocks: without an overhead the copy engines page all of them, and with a
    long one a kernel does."""

    copy_overhead_s: float = 0.0
    int8: bool = False


ENGINES = Paging()
KERNEL = Paging(copy_overhead_s=1.0)
INT8 = Paging(int8=True)
"""A token whose numbers are all the same comes back exactly, so `stamp` does."""


def cuda_over(gpu: Gpu, bench: Bench, paging: Paging = ENGINES, chunk_bytes: int = 16 * KB) -> CudaDevice:
    """With chunks so small that everything here takes several."""
    return CudaDevice(
        FACTS,
        make_host_kv(),
        bench.clock,
        bench,
        bench.host,
        gpu,
        chunk_bytes=chunk_bytes,
        locked_chunk_bytes=chunk_bytes,
        image_piece_bytes=16 * KB,
        kv_piece_bytes=24 * KB,
        copy_overhead_s=paging.copy_overhead_s,
        paged_int8=paging.int8,
    )


def fake(paging: Paging, *, lockable: bool = True) -> Callable[[Bench], AnyDevice]:
    return lambda bench: cuda_over(FakeGpu(lockable=lockable), bench, paging)


def real(paging: Paging) -> Callable[[Bench], AnyDevice]:
    return lambda bench: cuda_over(TorchGpu(), bench, paging)


@contextmanager
def bench_of(make: Callable[[Bench], AnyDevice]) -> Iterator[Bench]:
    bench = Bench(make)
    try:
        yield bench
    finally:
        bench.host.step_may_end.set()
        bench.made.close()


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
