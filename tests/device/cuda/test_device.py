"""The CUDA device on fake streams: order without completions, failure, memory, and what a machine without
a GPU is told."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from random import Random
from threading import Event

import pytest
import torch

from tests.device.bench import (
    ENGINES,
    FACTS,
    GPU,
    INT8,
    KB,
    KERNEL,
    SHAPE,
    WAIT_S,
    Bench,
    Paging,
    bench_of,
    content,
    cuda_over,
    make_host_kv,
    model,
    offset_of,
    stamp,
)
from tests.device.cuda.fake_gpu import FakeGpu
from tests.device.launching import launch_of
from tokenmux.core.errors import ConfigError, DoesNotFit
from tokenmux.core.event import Arrived, CopyDone, StepDone
from tokenmux.core.facts import Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.plan import (
    Activate,
    Channel,
    Chunk,
    Fetch,
    PageOut,
    Step,
)
from tokenmux.core.request import RequestId
from tokenmux.core.started import Started, StartedStep
from tokenmux.device.cuda import device as cuda
from tokenmux.device.cuda.chunks import Copies
from tokenmux.device.cuda.device import CudaDevice, _Space
from tokenmux.device.cuda.gpu import STREAMS, Gpu, TorchGpu, check_cuda, sum_in_float32
from tokenmux.device.cuda.ordering import Places, Spans, merged
from tokenmux.device.cuda.paging import Blocks
from tokenmux.device.device_protocol import LaunchReport, Post
from tokenmux.messages.completions import StepCompleted
from tokenmux.messages.launches import StepLaunch
from tokenmux.processes import shared_memory
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.testing import make_request
from tokenmux.testing.started_operations import (
    make_started_activation,
    make_started_compaction,
    make_started_fetch,
    make_started_page_in,
    make_started_page_out,
    make_started_step,
)

each_paging = pytest.mark.parametrize("paging", [ENGINES, KERNEL, INT8], ids=["engines", "kernel", "int8"])

# ── what is said to be touched, and what is ─────────────────────────────────────────────────────────────────


def sides(piece: cuda._Piece) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """From where and to where the piece copies."""
    match piece.work():
        case Copies(copies=copies):
            yield from ((copy.source, copy.target) for copy in copies)
        case Blocks() as blocks:
            size = blocks.block_bytes
            for there, here in zip(blocks.on_device.tolist(), blocks.on_host.tolist(), strict=True):
                on_device = blocks.arena[there * size : (there + 1) * size]
                on_host = blocks.host[here * size : (here + 1) * size]
                yield (on_host, on_device) if piece.channel is Channel.COPY_IN else (on_device, on_host)


class Watched(CudaDevice):
    """Checks that every copy stays within the places that its piece was entered with."""

    def _enter(self, piece: cuda._Piece, reads: Places, writes: Places) -> cuda._Piece:
        for source, target in sides(piece):
            for tensor, places in ((source, reads), (target, writes)):
                spaces = {_Space.ARENA, _Space.TAIL}
                if places is reads and piece.channel is Channel.COPY_OUT:
                    spaces = {_Space.ARENA}  # what a step in flight adds does not count
                self._check(tensor, places, spaces, is_source=tensor is source)
        return super()._enter(piece, reads, writes)

    def _check(self, tensor: torch.Tensor, places: Places, spaces: set[_Space], *, is_source: bool) -> None:
        for name, memory in (
            ("arena", self.arena),
            ("host kv", self._host_kv.bytes),
            *(("image", image.memory.bytes) for image in self._images.values()),
        ):
            start = tensor.data_ptr() - memory.data_ptr()
            if 0 <= start < memory.numel():
                if name == "image":
                    assert is_source, "nothing writes an image"
                    return
                names = {"arena": spaces, "host kv": {_Space.HOST_KV}}[name]
                span = (start, start + tensor.numel())
                assert all(is_within(span, places.get(n, ())) for n in names)
                return
        assert tensor.data_ptr() == self._aside.data_ptr()


def is_within(span: tuple[int, int], spans: Spans) -> bool:
    return any(start <= span[0] and span[1] <= end for start, end in spans)


def test_a_step_is_entered_with_all_that_it_reads_and_writes() -> None:
    seen: list[tuple[Places, Places]] = []

    class Spied(CudaDevice):
        def _enter(self, piece: cuda._Piece, reads: Places, writes: Places) -> cuda._Piece:
            seen.append((reads, writes))
            return super()._enter(piece, reads, writes)

    def make(bench: Bench) -> CudaDevice:
        return Spied(FACTS, make_host_kv(), bench.clock, bench, bench.host, FakeGpu())

    with bench_of(make) as bench:
        a = model("a", 200 * KB)
        bench.add(a)
        bench.load("a")
        for name in ("r", "s"):
            bench.instance.apply(Arrived(bench.now_s(), make_request(name, "a", n_prompt=28)))
            bench.run(Step(ModelId("a"), (Chunk(RequestId(name), 0, 16),)))
            bench.run(Step(ModelId("a"), (Chunk(RequestId(name), 16, 12),)))
        # Of five blocks, three hold 24 tokens, the fourth 4 of 8, and the fifth is begun.
        bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 28, 1),), repeat=6))
        size = SHAPE.block_bytes
        blocks = [(index * size, index * size + size) for index in bench.blocks_of("r")]
        others = [(index * size, index * size + size) for index in bench.blocks_of("s")]
        reads, writes = seen[-1]
        assert is_within((0, a.n_bytes), reads[_Space.ARENA])
        assert all(is_within(block, reads[_Space.ARENA]) for block in blocks)
        assert reads[_Space.TAIL] == writes[_Space.TAIL] == merged(blocks[3:])
        assert writes[_Space.ARENA] == merged(blocks[4:])
        assert not any(is_within(block, reads[_Space.ARENA]) for block in others)


# ── operations that do not wait for completions ─────────────────────────────────────────────────────────────


class HashingStep:
    """Writes tokens that depend on all of the weights and on all KV before them, so that one wrong byte
    spreads."""

    def __init__(self, early: "Early", launch: StepLaunch) -> None:
        self.early = early
        self.launch = launch
        self.weights = slice(*early.weights_span(launch.model))

    def run(self, stop: Event, post: Post, settle: Callable[[], None]) -> None:
        kv = self.early.kv_view
        state = digest(self.early.device.arena[self.weights])
        (segment,) = self.launch.segments
        for position in range(segment.start + len(segment.token_ids)):
            block, token = segment.blocks[position // SHAPE.block_size], position % SHAPE.block_size
            if position >= segment.start:
                kv[block, :, :, :, token] = (state * 31 + position) % 251
            state = (state * 17 + digest(kv[block, :, :, :, token])) % 65_521
        settle()
        post.tell(StepCompleted(self.launch.operation, (0.0,), ()))


def digest(data: torch.Tensor) -> int:
    flat = data.reshape(-1).to(torch.int64)
    return int((flat * (torch.arange(flat.numel(), device=flat.device) % 8191 + 1)).sum() % 65_521)


@dataclass
class Early:
    """A ledger and a device without an instance between them: books are closed when an operation starts, not
    when it ends.

    Only what a page-out may count on is left to completions, as it is in the instance: the tokens of steps
    that have ended.
    """

    gpu: Gpu
    is_early: bool
    paging: Paging = ENGINES
    ledger: Ledger = field(default_factory=lambda: Ledger(FACTS, HostCache(1 << 20)))
    models: dict[str, ModelFacts] = field(default_factory=dict)
    resident: list[str] = field(default_factory=list)
    requests: dict[str, str] = field(default_factory=dict)
    """The model of each."""
    n_tokens: dict[str, int] = field(default_factory=dict)
    n_started: int = 0
    n_under_way: int = 0
    in_step: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.inbox: SimpleQueue[LaunchReport | BaseException] = SimpleQueue()
        self.device = Watched(
            FACTS,
            make_host_kv(),
            MonotonicClock(),
            self,
            self,
            self.gpu,
            chunk_bytes=16 * KB,
            locked_chunk_bytes=16 * KB,
            image_piece_bytes=16 * KB,
            kv_piece_bytes=24 * KB,
            copy_overhead_s=self.paging.copy_overhead_s,
            paged_int8=self.paging.int8,
        )
        for index, name in enumerate("abcd"):
            facts = self.models[name] = model(name, (120 + 50 * index) * KB)
            memory = shared_memory.create_shared("image", facts.n_bytes)
            self.device.map_image(facts.images[0].id, facts.n_bytes, memory, filled=False)
            self.start(make_started_fetch(self.n_started, facts))
        self.settle()

    def read_image(
        self, model: ModelId, image: Image, into: memoryview, progress: Callable[[int], None]
    ) -> None:
        into[:] = content(image)

    def adopt_image(self, image: ImageId, content: memoryview, opened: Callable[[], None]) -> None: ...

    def prepare_step(self, launch: StepLaunch) -> HashingStep:
        return HashingStep(self, launch)

    def kv_shape(self, model: ModelId) -> KvShape:
        return SHAPE

    def kv_dtype(self, model: ModelId) -> torch.dtype:
        return torch.float16

    def weights_span(self, model: ModelId) -> tuple[int, int]:
        start = offset_of(self.ledger, ImageId(model))
        return start, start + self.models[model].n_bytes

    def detach(self) -> None: ...
    def attach(self, arena: torch.Tensor) -> None: ...

    def tell(self, report: LaunchReport) -> None:
        self.inbox.put(report)

    def broken(self, operation: int, error: BaseException) -> None:
        self.inbox.put(error)

    @property
    def kv_view(self) -> torch.Tensor:
        n_blocks = FACTS.arena_bytes // SHAPE.block_bytes
        blocks = self.device.arena[: n_blocks * SHAPE.block_bytes]
        return blocks.view(n_blocks, SHAPE.n_layers, 2, SHAPE.n_kv_heads, SHAPE.block_size, -1)

    def start(self, started: Started) -> None:
        self.n_started += 1
        self.n_under_way += 1
        of = lambda name: ModelId(self.requests[name])
        self.device.start(launch_of(started, self.ledger, of))
        if not self.is_early:
            self.settle()

    def settle(self) -> None:
        while self.n_under_way:
            completion = self.inbox.get(timeout=WAIT_S)
            if isinstance(completion, BaseException):
                raise completion
            self.n_under_way -= 1

    # the actions of a program, each either possible and begun, or nothing

    def activate(self, name: str) -> None:
        facts = self.models[name]
        if name not in self.resident and self.ledger.can_place(facts):
            self.resident.append(name)
            images = self.ledger.place(facts)
            self.start(make_started_activation(self.n_started, facts, images))

    def evict(self, name: str) -> None:
        if name in self.resident:
            self.resident.remove(name)
            self.ledger.displace(self.models[name])

    def open(self, name: str, of: str) -> None:
        if name not in self.requests:
            self.requests[name] = of
            self.n_tokens[name] = 0
            self.ledger.open(RequestId(name), SHAPE)

    def close(self, name: str) -> None:
        """Gone, whatever is under way for it; a new request may take the name."""
        if name in self.requests:
            self.ledger.close(RequestId(name))
            del self.requests[name], self.n_tokens[name]
            self.in_step.discard(name)

    def step(self, name: str, n_tokens: int) -> None:
        of = self.requests.get(name)
        if of not in self.resident or of is None:
            return
        table = self.ledger.kv[RequestId(name)]
        end = self.n_tokens[name] + n_tokens
        if table.n_missing or not self.ledger.can_grow([(table, end)]):
            return
        self.ledger.grow(table, end)
        chunk = Chunk(RequestId(name), self.n_tokens[name], n_tokens)
        self.n_tokens[name] = end
        self.in_step.add(name)
        self.start(make_started_step(self.n_started, self.models[of], (chunk,)))

    def end_steps(self) -> None:
        """All steps have ended, with whatever else there was."""
        self.settle()
        for name in self.in_step:
            self.ledger.kv[RequestId(name)].n_computed = self.n_tokens[name]
        self.in_step.clear()

    def page_out(self, name: str) -> None:
        if name not in self.requests:
            return
        request_id = RequestId(name)
        table = self.ledger.kv[request_id]
        if table.n_computed == table.n_clean or not self.ledger.can_page_out(table):
            return
        transfers = self.ledger.begin_page_out(request_id)
        self.start(make_started_page_out(self.n_started, [(request_id, transfers)]))
        self.ledger.end_page_out(request_id, table.n_computed, ok=True)

    def drop(self, name: str) -> None:
        if name in self.requests and name not in self.in_step:
            table = self.ledger.kv[RequestId(name)]
            if table.is_clean and table.n_computed and not table.n_missing:
                self.ledger.drop(RequestId(name))

    def give_up(self, name: str) -> None:
        """Its blocks are free at once, while they are still being copied."""
        self.end_steps()
        self.page_out(name)
        self.drop(name)

    def page_in(self, name: str) -> None:
        if name not in self.requests:
            return
        request_id = RequestId(name)
        table = self.ledger.kv[request_id]
        if table.n_missing and self.ledger.can_page_in(table):
            transfers = self.ledger.begin_page_in(request_id)
            self.start(make_started_page_in(self.n_started, [(request_id, transfers)]))
            self.ledger.end_page_in(request_id, transfers, ok=True)

    def compact(self, n_bytes: int) -> None:
        moves = self.ledger.plan_compaction(n_bytes, (), (), ())
        if moves:
            self.start(make_started_compaction(self.n_started, self.ledger.apply(moves)))

    def contents(self) -> dict[str, int]:
        """A digest of everything that is somewhere: weights on the device, KV on the device or the host."""
        self.end_steps()
        found = {}
        for name in self.resident:
            start = offset_of(self.ledger, ImageId(name))
            found[name] = digest(self.device.arena[start : start + self.models[name].n_bytes])
            assert found[name] == digest(torch.tensor(list(content(self.models[name].images[0]))))
        for name in self.requests:
            self.page_in(name)
            self.settle()
            table = self.ledger.kv[RequestId(name)]
            if table.n_missing:
                continue
            blocks = [self.ledger.blocks.block_index(h) for h in table.device if h is not None]
            tokens = [
                digest(self.kv_view[blocks[p // SHAPE.block_size], :, :, :, p % SHAPE.block_size])
                for p in range(table.n_computed)
            ]
            found[f"kv {name}"] = digest(torch.tensor(tokens))
        return found


def program(seed: int, n_actions: int) -> Callable[[Early], None]:
    """Actions by chance: many that fill the device, so that everything lies where something else lay
    before."""
    random = Random(seed)
    names = "abcd"
    actions: list[Callable[[Early], None]] = []
    for _ in range(n_actions):
        of, name, n = random.choice(names), f"r{random.randrange(4)}", random.randrange(1, 25)
        actions.append(
            random.choice(
                [
                    lambda early, of=of: early.activate(of),
                    lambda early, of=of: early.activate(of),
                    lambda early, of=of: early.evict(of),
                    lambda early, name=name, of=of: early.open(name, of),
                    lambda early, name=name, n=n: early.step(name, n),
                    lambda early, name=name, n=n: early.step(name, n),
                    lambda early, name=name, n=n: early.step(name, n),
                    lambda early: early.end_steps(),
                    lambda early, name=name: early.close(name),
                    lambda early, name=name: early.page_out(name),
                    lambda early, name=name: early.page_out(name),
                    lambda early, name=name: early.give_up(name),
                    lambda early, name=name: early.drop(name),
                    lambda early, name=name: early.page_in(name),
                    lambda early, name=name: early.page_in(name),
                    lambda early: early.compact(300 * KB),
                ]
            )
        )

    def run(early: Early) -> None:
        for action in actions:
            action(early)

    return run


@contextmanager
def early(gpu: Gpu, *, is_early: bool, paging: Paging) -> Iterator[Early]:
    harness = Early(gpu, is_early, paging)
    try:
        yield harness
    finally:
        harness.device.close()


SEEDS_THAT_PAGE = (1, 2, 8, 13)
"""Half of all programs never page anything, and say nothing about the kernel."""


@each_paging
@pytest.mark.parametrize("lockable", [True, False], ids=["page-locked", "staged"])
@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=() if n in SEEDS_THAT_PAGE else pytest.mark.nightly) for n in range(60)],
)
def test_operations_that_wait_for_no_completion_leave_what_waiting_ones_leave(
    seed: int, lockable: bool, paging: Paging
) -> None:
    run = program(seed, 120)
    with early(FakeGpu(seed), is_early=False, paging=INT8 if paging is INT8 else ENGINES) as waiting:
        run(waiting)
        expected, n_started = waiting.contents(), waiting.n_started
    gpu = FakeGpu(seed + 1, lockable=lockable)
    with early(gpu, is_early=True, paging=paging) as hasty:
        run(hasty)
        assert hasty.contents() == expected
        assert hasty.n_started == n_started
    assert not gpu.n_launches or paging is not ENGINES
    assert len(hasty.device._ordering) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "paging", [pytest.param(p, marks=GPU) for p in (ENGINES, KERNEL)], ids=["engines", "kernel"]
)
def test_the_same_on_a_gpu(seed: int, paging: Paging) -> None:
    run = program(seed, 120)
    with early(FakeGpu(seed), is_early=False, paging=ENGINES) as waiting:
        run(waiting)
        expected = waiting.contents()
    with early(TorchGpu(), is_early=True, paging=paging) as hasty:
        run(hasty)
        assert hasty.contents() == expected


# ── what waits for what, one at a time ──────────────────────────────────────────────────────────────────────


def in_one_chunk(bench: Bench, gpu: Gpu, paging: Paging = ENGINES) -> CudaDevice:
    """All of an operation is given to its stream before anything of it is waited for."""
    return cuda_over(gpu, bench, paging, chunk_bytes=FACTS.arena_bytes)


EARLY = 1000
"""The id of an operation that the instance would not have begun yet."""


def early_step(bench: Bench, *chunks: Chunk) -> StartedStep:
    return make_started_step(EARLY + 1, bench.instance.models[ModelId("a")].facts, chunks)


def test_a_step_waits_on_the_device_for_the_copy_of_its_weights() -> None:
    gpu = FakeGpu()
    with bench_of(lambda bench: in_one_chunk(bench, gpu)) as bench:
        bench.add(model("a", 200 * KB))
        bench.run(Fetch(ModelId("a")))
        bench.instance.apply(Arrived(bench.now_s(), make_request("r", "a")))
        table = bench.instance.requests[RequestId("r")].kv
        bench.instance.ledger.grow(table, 16)
        gpu.shut_after(Channel.COPY_IN, 0)
        bench.start(Activate(ModelId("a")))
        bench.carry_out(early_step(bench, Chunk(RequestId("r"), 0, 16)))
        assert {gpu.stuck.get(timeout=WAIT_S) for _ in range(2)} == {Channel.COPY_IN, Channel.COMPUTE}
        assert not bench.host.in_step.is_set()
        gpu.open(Channel.COPY_IN)
        assert {type(bench.inbox.get(timeout=WAIT_S)) for _ in range(2)} == {CopyDone, StepDone}


def test_a_request_that_has_come_in_runs_while_the_next_of_the_same_operation_comes() -> None:
    """Events are per request: the copy-in stream stands still inside the second one's blocks."""
    gpu = FakeGpu()
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        bench.add(model("a", 200 * KB))
        bench.load("a")
        for name in ("first", "second"):
            bench.instance.apply(Arrived(bench.now_s(), make_request(name, "a")))
            bench.run(Step(ModelId("a"), (Chunk(RequestId(name), 0, 16),)))
            bench.run(PageOut((RequestId(name),)))
            bench.instance.ledger.drop(RequestId(name))
        ledger = bench.instance.ledger
        transfers = tuple(
            (RequestId(name), ledger.begin_page_in(RequestId(name))) for name in ("first", "second")
        )
        gpu.shut_after(Channel.COPY_IN, 3)  # a copy of the first, the end of its chunk, the end of the first
        bench.carry_out(make_started_page_in(EARLY, transfers))
        ledger.end_page_in(RequestId("first"), transfers[0][1], ok=True)
        bench.host.in_step.clear()
        bench.start(Step(ModelId("a"), (Chunk(RequestId("first"), 16, 1),)))
        assert isinstance(bench.inbox.get(timeout=WAIT_S), StepDone)
        assert gpu.stuck.get(timeout=WAIT_S) is Channel.COPY_IN
        gpu.open(Channel.COPY_IN)
        assert isinstance(bench.inbox.get(timeout=WAIT_S), CopyDone)


@each_paging
def test_kv_that_goes_out_through_chunks_of_the_host_comes_in_only_when_it_has_landed(
    paging: Paging,
) -> None:
    gpu = FakeGpu(lockable=False)
    with bench_of(lambda bench: in_one_chunk(bench, gpu, paging)) as bench:
        bench.add(model("a", 200 * KB))
        bench.load("a")
        bench.instance.apply(Arrived(bench.now_s(), make_request("r", "a")))
        bench.run(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
        ledger = bench.instance.ledger
        gpu.shut_after(Channel.COPY_OUT, 0)
        bench.start(PageOut((RequestId("r"),)))
        ledger.end_page_out(RequestId("r"), 16, ok=True)
        before = bench.blocks_of("r")
        ledger.drop(RequestId("r"))
        ledger.blocks.allocate(SHAPE.block_bytes, 2)  # so that it comes into other blocks
        transfers = ledger.begin_page_in(RequestId("r"))
        bench.carry_out(make_started_page_in(EARLY, [(RequestId("r"), transfers)]))
        ledger.end_page_in(RequestId("r"), transfers, ok=True)
        assert not set(before) & set(bench.blocks_of("r"))
        assert gpu.stuck.get(timeout=WAIT_S) is Channel.COPY_OUT
        gpu.open(Channel.COPY_OUT)
        assert {bench.inbox.get(timeout=WAIT_S).operation for _ in range(2)} == {3, 1000}  # type: ignore[union-attr]
        assert bench.stamps("r", 16) == [[stamp(position)] for position in range(16)]


@each_paging
def test_a_step_waits_on_the_device_for_the_page_in_of_its_request_and_a_page_in_for_those_that_leave(
    paging: Paging,
) -> None:
    """`second` is paged out and dropped, `first` comes into its blocks and runs: all given before anything
    is done."""
    gpu = FakeGpu()
    with bench_of(lambda bench: in_one_chunk(bench, gpu, paging)) as bench:
        bench.add(model("a", 570 * KB))
        bench.load("a")
        ledger = bench.instance.ledger
        for name in ("first", "second"):
            bench.instance.apply(Arrived(bench.now_s(), make_request(name, "a", n_prompt=48)))
            for start in (0, 16, 32):
                bench.run(Step(ModelId("a"), (Chunk(RequestId(name), start, 16),)))
            if name == "first":
                bench.run(PageOut((RequestId(name),)))
                ledger.drop(RequestId(name))
        blocks = set(bench.blocks_of("second"))
        for channel in (Channel.COPY_OUT, Channel.COPY_IN):
            gpu.shut_after(channel, 0)
        bench.start(PageOut((RequestId("second"),)))
        ledger.end_page_out(RequestId("second"), 48, ok=True)
        ledger.drop(RequestId("second"))
        transfers = ledger.begin_page_in(RequestId("first"))
        bench.carry_out(make_started_page_in(EARLY, [(RequestId("first"), transfers)]))
        ledger.end_page_in(RequestId("first"), transfers, ok=True)
        assert blocks & set(bench.blocks_of("first"))
        ledger.grow(ledger.kv[RequestId("first")], 49)
        bench.host.in_step.clear()
        bench.carry_out(early_step(bench, Chunk(RequestId("first"), 48, 1)))
        assert {gpu.stuck.get(timeout=WAIT_S) for _ in range(3)} == {*STREAMS}
        gpu.open(Channel.COPY_IN)
        assert {gpu.stuck.get(timeout=WAIT_S) for _ in range(3)} == {*STREAMS}, "it waits for the copy-out"
        assert not bench.host.in_step.is_set()
        gpu.open(Channel.COPY_OUT)
        assert {type(bench.inbox.get(timeout=WAIT_S)) for _ in range(3)} == {CopyDone, StepDone}


def test_an_activation_that_is_superseded_in_mid_copy_ends_when_nothing_of_it_is_in_flight() -> None:
    gpu = FakeGpu()
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        bench.add(model("a", 200 * KB))
        bench.run(Fetch(ModelId("a")))
        gpu.shut_after(Channel.COPY_IN, 0)
        bench.start(Activate(ModelId("a")))
        assert gpu.stuck.get(timeout=WAIT_S) is Channel.COPY_IN
        bench.stop_copy(1)
        assert bench.inbox.empty(), "two chunks are in flight"
        n_copies = gpu.n_copies
        gpu.open(Channel.COPY_IN)
        done = bench.finish()
        assert isinstance(done, CopyDone)
        assert done.superseded
        assert gpu.n_copies - n_copies == 2
        bench.instance.check_integrity()


def test_an_image_is_unmapped_only_when_the_copies_that_read_it_are_done() -> None:
    gpu = FakeGpu()
    with bench_of(lambda bench: in_one_chunk(bench, gpu)) as bench:
        a, b = model("a", 200 * KB), model("b", 100 * KB)
        bench.add(a, b)
        bench.run(Fetch(ModelId("a")))
        gpu.shut_after(Channel.COPY_IN, 0)
        bench.start(Activate(ModelId("a")))
        bench.carry_out(make_started_fetch(EARLY, b, dropped=(ImageId("a"),)))
        assert gpu.stuck.get(timeout=WAIT_S) is Channel.COPY_IN
        done = bench.inbox.get(timeout=WAIT_S)
        assert isinstance(done, CopyDone)
        assert done.operation == EARLY
        assert locked_for_images(gpu) == 300 * KB
        gpu.open(Channel.COPY_IN)
        done = bench.inbox.get(timeout=WAIT_S)
        assert isinstance(done, CopyDone)
        assert done.operation == 1
        assert bench.image_on_device(a) == content(a.images[0])
        until_locked_for_images(gpu, 100 * KB)


def check_ended(before: set[threading.Thread]) -> None:
    """No thread of the device is left, or about to end."""
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_S)
        assert not thread.is_alive()


# ── failure ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_gpu_that_breaks_in_a_copy_is_reported_and_nothing_hangs() -> None:
    gpu, before = FakeGpu(), set(threading.enumerate())
    bench = Bench(lambda bench: cuda_over(gpu, bench))
    bench.add(model("a", 200 * KB), model("b", 200 * KB))
    bench.load("a")
    bench.run(Fetch(ModelId("b")))
    gpu.fail_at = gpu.n_copies + 4
    bench.start(Activate(ModelId("b")))
    error = bench.inbox.get(timeout=WAIT_S)
    assert isinstance(error, RuntimeError)
    assert "illegal memory access" in str(error)
    bench.instance.apply(Arrived(bench.now_s(), make_request("r", "a")))
    bench.start(Step(ModelId("a"), (Chunk(RequestId("r"), 0, 16),)))
    assert isinstance(bench.inbox.get(timeout=WAIT_S), RuntimeError), "every later operation fails, too"
    bench.device.close()
    check_ended(before)


def test_what_depends_on_an_operation_that_failed_is_given_up_silently() -> None:
    gpu = FakeGpu(fail_at=1)
    bench = Bench(lambda bench: cuda_over(gpu, bench))
    bench.add(model("a", 200 * KB))
    bench.run(Fetch(ModelId("a")))
    bench.instance.apply(Arrived(bench.now_s(), make_request("r", "a")))
    bench.instance.ledger.grow(bench.instance.requests[RequestId("r")].kv, 16)
    gpu.shut_after(Channel.COPY_IN, 0)
    bench.start(Activate(ModelId("a")))
    bench.carry_out(early_step(bench, Chunk(RequestId("r"), 0, 16)))
    gpu.open(Channel.COPY_IN)
    assert isinstance(bench.inbox.get(timeout=WAIT_S), RuntimeError)
    bench.device.close()
    assert bench.inbox.empty()
    assert not bench.host.in_step.is_set()


def test_a_device_that_is_closed_in_mid_copy_ends_and_gives_everything_back() -> None:
    gpu = FakeGpu()
    bench = Bench(lambda bench: cuda_over(gpu, bench))
    bench.add(model("a", 200 * KB))
    bench.run(Fetch(ModelId("a")))
    gpu.shut_after(Channel.COPY_IN, 0)
    bench.start(Activate(ModelId("a")))
    assert gpu.stuck.get(timeout=WAIT_S) is Channel.COPY_IN
    closing = threading.Thread(target=bench.device.close)
    closing.start()
    gpu.open(Channel.COPY_IN)
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert bench.inbox.empty(), "a copy that was given up does not complete"
    assert (gpu.allocated, gpu.locked) == ({}, {})


def test_a_channel_that_hangs_in_the_driver_does_not_hang_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CHANNEL_CLOSE_S", 0.1)
    gpu = FakeGpu()
    bench = Bench(lambda bench: cuda_over(gpu, bench))
    bench.add(model("a", 200 * KB))
    bench.run(Fetch(ModelId("a")))
    gpu.shut_after(Channel.COPY_IN, 0)
    bench.start(Activate(ModelId("a")))
    assert gpu.stuck.get(timeout=WAIT_S) is Channel.COPY_IN
    bench.device.close()
    assert gpu.locked, "memory under an operation is not given back"
    gpu.open(Channel.COPY_IN)


def test_a_gpu_without_room_for_the_arena_is_refused_with_the_remedy() -> None:
    before = set(threading.enumerate())
    with pytest.raises(DoesNotFit, match=r"lower device\.arena"):
        Bench(lambda bench: cuda_over(FakeGpu(capacity=FACTS.arena_bytes - 1), bench))
    check_ended(before)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────


OFFSETS_BYTES = 4 * 64 * KB
"""Of two chunks in flight in each direction."""


def locked_for_images(gpu: FakeGpu) -> int:
    return sum(gpu.locked.values()) - FACTS.host_kv_bytes - OFFSETS_BYTES


def until_locked_for_images(gpu: FakeGpu, n_bytes: int) -> None:
    """Images are unlocked on a thread of their own."""
    until_s = time.monotonic() + WAIT_S
    while locked_for_images(gpu) != n_bytes:
        assert time.monotonic() < until_s, locked_for_images(gpu)
        time.sleep(0.001)


def test_memory_is_what_the_books_say_and_goes_back() -> None:
    gpu = FakeGpu()
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        names = "abcdef"
        bench.add(*(model(name, 300 * KB) for name in names))
        for n_read, name in enumerate(names, 1):
            bench.run(Fetch(ModelId(name)))
            until_locked_for_images(gpu, min(n_read, 3) * 300 * KB)
        assert bench.instance.ledger.cache.used_bytes == 900 * KB, "three of them fit"
        assert sum(gpu.allocated.values()) == FACTS.arena_bytes + 16 * KB + OFFSETS_BYTES
    assert (gpu.allocated, gpu.locked) == ({}, {})


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_what_is_locked_is_what_the_cache_holds(seed: int) -> None:
    gpu, random = FakeGpu(), Random(seed)
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        names = "abcdefghijklmnop"
        bench.add(*(model(name, random.randrange(1, 500) * KB) for name in names))
        cache = bench.instance.ledger.cache
        for _ in range(120):
            missing = [name for name in names if not cache.has(ImageId(name))]
            bench.run(Fetch(ModelId(random.choice(missing))))
            assert locked_for_images(gpu) >= cache.used_bytes
        until_locked_for_images(gpu, cache.used_bytes)


def test_an_image_is_locked_piece_by_piece_so_that_others_can_launch_in_between() -> None:
    gpu = FakeGpu()
    sizes: list[int] = []
    lock = gpu.lock
    gpu.lock = lambda address, n_bytes: sizes.append(n_bytes) or lock(address, n_bytes)  # type: ignore[func-returns-value,method-assign]
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        sizes.clear()
        bench.add(model("a", 40 * KB))
        bench.run(Fetch(ModelId("a")))
        assert sizes == [16 * KB, 16 * KB, 8 * KB]


def test_an_image_that_the_system_does_not_lock_is_copied_all_the_same() -> None:
    gpu = FakeGpu()
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        a = model("a", 100 * KB)
        bench.add(a)
        gpu.lockable = False
        bench.load("a")
        assert locked_for_images(gpu) == 2 * 16 * KB, "the chunks through which it passes"
        assert bench.image_on_device(a) == content(a.images[0])


def test_an_image_is_read_before_its_pages_are_locked() -> None:
    gpu = FakeGpu()
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        bench.add(model("a", 100 * KB))
        locked = []
        read = bench.host.read_image

        def read_image(
            model: ModelId, image: Image, into: memoryview, progress: Callable[[int], None]
        ) -> None:
            read(model, image, into, progress)
            locked.append(locked_for_images(gpu))

        bench.host.read_image = read_image  # type: ignore[method-assign]
        bench.run(Fetch(ModelId("a")))
        assert locked == [0]
        assert locked_for_images(gpu) == 100 * KB


def test_an_image_that_cannot_be_read_locks_nothing() -> None:
    gpu = FakeGpu()
    with bench_of(lambda bench: cuda_over(gpu, bench)) as bench:
        bench.add(model("bad", 100 * KB), model("good", 100 * KB))
        bench.host.bad_images.add(ImageId("bad"))
        for _ in range(3):
            bench.run(Fetch(ModelId("bad")))
        assert locked_for_images(gpu) == 0
        bench.run(Fetch(ModelId("good")))
        bench.run(Activate(ModelId("good")))
        assert bench.image_on_device(bench.instance.models[ModelId("good")].facts) == content(
            Image(ImageId("good"), 100 * KB)
        )


def test_it_is_said_when_host_memory_cannot_be_locked(caplog: pytest.LogCaptureFixture) -> None:
    with bench_of(lambda bench: cuda_over(FakeGpu(lockable=False), bench)):
        assert f"allow the server to lock {FACTS.host_kv_bytes} bytes" in caplog.text


# ── no GPU ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_cuda_is_told_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"device\.kind: cuda needs .* or set `kind: cpu`"):
        check_cuda()
    with pytest.raises(ConfigError):
        TorchGpu()


def test_products_are_summed_in_float32() -> None:
    matmul = torch.backends.cuda.matmul
    before = (
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
    )
    try:
        sum_in_float32()
        assert not matmul.allow_bf16_reduced_precision_reduction
        assert not matmul.allow_fp16_reduced_precision_reduction
    finally:
        (
            matmul.allow_bf16_reduced_precision_reduction,
            matmul.allow_fp16_reduced_precision_reduction,
        ) = before
