"""A GPU without a GPU: streams over host memory that do everything late, in a random order that events and
streams permit.

What a stream is given runs when somebody waits for it, or by chance before; a copy reads its source then and
not when it was given. So a wait that is missing shows as wrong bytes. Copies are refused from or to memory
that a GPU could not reach, or not any more.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue
from random import Random
from threading import Condition, RLock

import torch

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.plan import Channel
from tokenmux.device.cuda.gpu import STREAMS
from tokenmux.kernels.kv_page import reference
from tokenmux.kernels.kv_page.quantised import record_bytes
from tokenmux.kernels.layout import KVLayout


@dataclass(eq=False)
class FakeEvent:
    gpu: "FakeGpu"
    channel: Channel
    passed: bool = False

    def wait(self) -> None:
        self.gpu.run_until(self)

    def hold(self, channel: Channel) -> None:
        self.gpu.give(channel, lambda: None, self)


@dataclass(frozen=True)
class Task:
    """What a stream does once `after` has passed."""

    run: Callable[[], None]
    after: FakeEvent | None


@dataclass
class FakeGpu:
    seed: int = 0
    capacity: int = 1 << 30
    lockable: bool = True
    fail_at: int | None = None
    """The copy or launch of this number fails, and everything after it."""
    name: str = "fake"
    capability: int = 90
    allocated: dict[int, int] = field(default_factory=dict)
    """Bytes by address: of device memory, and of page-locked memory."""
    locked: dict[int, int] = field(default_factory=dict)
    n_copies: int = 0
    n_locks: int = 0
    """Calls that locked or unlocked memory."""
    n_submissions: int = 0
    """Calls that gave copies."""
    n_launches: int = 0
    """Of the copies, those of blocks by a kernel."""
    broken: bool = False
    stuck: SimpleQueue[Channel] = field(default_factory=SimpleQueue)
    """The streams that somebody waits for in vain because of `shut_after`."""

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        self._streams: dict[Channel, deque[Task]] = {channel: deque() for channel in STREAMS}
        self._allowed: dict[Channel, int] = {}
        self._opened = Condition()
        self._lock = RLock()

    def shut_after(self, channel: Channel, n_tasks: int) -> None:
        """The stream does what it was given, then so many more things, then nothing until `open`."""
        self.record(channel).wait()
        self._allowed[channel] = n_tasks

    def open(self, channel: Channel) -> None:
        with self._opened:
            self._allowed.pop(channel, None)
            self._opened.notify_all()

    # ── the interface ───────────────────────────────────────────────────────────────────────────────────────

    def allocate(self, n_bytes: int) -> torch.Tensor:
        self._check()
        if sum(self.allocated.values()) + n_bytes > self.capacity:
            raise DoesNotFit(f"{n_bytes} bytes cannot be allocated on {self.name}: lower device.arena")
        memory = torch.zeros(n_bytes, dtype=torch.uint8)
        self.allocated[memory.data_ptr()] = n_bytes
        return memory

    def release(self, memory: torch.Tensor) -> None:
        self._check()
        (self.allocated if memory.data_ptr() in self.allocated else self.locked).pop(memory.data_ptr())

    def allocate_locked(self, n_bytes: int) -> torch.Tensor:
        self._check()
        memory = torch.zeros(n_bytes, dtype=torch.uint8)
        self.locked[memory.data_ptr()] = n_bytes
        return memory

    def lock(self, address: int, n_bytes: int) -> bool:
        self._check()
        self.n_locks += 1
        if self.lockable:
            assert address not in self.locked, "locked twice"
            self.locked[address] = n_bytes
        return self.lockable

    def unlock(self, address: int) -> None:
        self._check()
        self.n_locks += 1
        del self.locked[address]

    def copy(self, channel: Channel, *copies: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.n_submissions += 1
        for target, source in copies:
            self._copy(channel, target, source)

    def _copy(self, channel: Channel, target: torch.Tensor, source: torch.Tensor) -> None:
        start, end = target.data_ptr(), target.data_ptr() + target.numel()
        assert source.numel() == target.numel()
        assert end <= source.data_ptr() or source.data_ptr() + source.numel() <= start, "the sides overlap"

        def run() -> None:
            self._count()
            for side in (target, source):
                self._check_reaches(side)
            target.copy_(source)

        self.give(channel, run)

    def copy_blocks(
        self,
        channel: Channel,
        target: torch.Tensor,
        source: torch.Tensor,
        offsets: torch.Tensor,
        block_bytes: int,
    ) -> None:
        assert block_bytes % 16 == 0
        self._launch(
            channel,
            lambda: reference.kv_page(target, source, offsets, block_bytes=block_bytes),
            offsets,
            (target, block_bytes),
            (source, block_bytes),
        )

    def quantise_blocks(
        self,
        channel: Channel,
        host: torch.Tensor,
        arena: torch.Tensor,
        offsets: torch.Tensor,
        layout: KVLayout,
    ) -> None:
        self._launch(
            channel,
            lambda: reference.kv_page_out_int8(host, arena, offsets, layout=layout),
            offsets,
            (host, record_bytes(layout)),
            (arena, layout.block_elements),
        )

    def dequantise_blocks(
        self,
        channel: Channel,
        arena: torch.Tensor,
        host: torch.Tensor,
        offsets: torch.Tensor,
        layout: KVLayout,
    ) -> None:
        self._launch(
            channel,
            lambda: reference.kv_page_in_int8(arena, host, offsets, layout=layout),
            offsets,
            (arena, layout.block_elements),
            (host, record_bytes(layout)),
        )

    def record(self, channel: Channel) -> FakeEvent:
        event = FakeEvent(self, channel)

        def run() -> None:
            event.passed = True

        self.give(channel, run)
        return event

    @contextmanager
    def running(self, channel: Channel) -> Iterator[None]:
        """What runs on the host runs now, so everything before it in the stream does, too."""
        self.record(channel).wait()
        yield
        self._check()

    # ── how it is carried out ───────────────────────────────────────────────────────────────────────────────

    def give(self, channel: Channel, run: Callable[[], None], after: FakeEvent | None = None) -> None:
        with self._lock:
            self._check()
            self._streams[channel].append(Task(run, after))
            for _ in range(self._random.choice((0, 0, 0, 1, 3))):
                self._run_any()

    def run_until(self, event: FakeEvent) -> None:
        """Half of the time nothing else is done than what has to be."""
        if self._random.random() < 0.1:
            time.sleep(0)  # hands the interpreter to another thread, as waiting for a GPU does
        while not self._run_towards(event):
            assert self._allowed, "streams wait for each other in a circle"
            with self._opened:
                self.stuck.put(event.channel)
                self._opened.wait()

    def _run_towards(self, event: FakeEvent) -> bool:
        with self._lock:
            self._check()
            if self._random.random() < 0.5:
                self._run_lazily(event)
            while not event.passed and self._run_any():
                pass
            return event.passed

    def _run_lazily(self, event: FakeEvent) -> None:
        stream = self._streams[event.channel]
        while not event.passed and self._may_run(event.channel):
            after = stream[0].after
            if after is not None:
                self._run_lazily(after)
                if not after.passed:
                    return
            self._run_next(event.channel)

    def _run_any(self) -> bool:
        ready = [
            channel
            for channel, stream in self._streams.items()
            if stream and self._may_run(channel) and (not (e := stream[0].after) or e.passed)
        ]
        if ready:
            self._run_next(self._random.choice(ready))
        return bool(ready)

    def _run_next(self, channel: Channel) -> None:
        if channel in self._allowed:
            self._allowed[channel] -= 1
        self._streams[channel].popleft().run()

    def _may_run(self, channel: Channel) -> bool:
        return self._allowed.get(channel, 1) > 0

    def _launch(
        self,
        channel: Channel,
        kernel: Callable[[], None],
        offsets: torch.Tensor,
        *sides: tuple[torch.Tensor, int],
    ) -> None:
        """Give a kernel to the stream; `sides` are a tensor for each row of `offsets`, and how much of it
        a block takes."""
        assert (offsets.dtype, offsets.shape[0]) == (torch.int64, 2)

        def run() -> None:
            assert self._lies_in(self.allocated, offsets), "a kernel reads its offsets from device memory"
            self._count()
            self.n_launches += 1
            for (tensor, size), row in zip(sides, offsets.tolist(), strict=True):
                for start in row:
                    assert 0 <= start <= len(tensor) - size
                    assert start % 16 == 0
                    self._check_reaches(tensor[start : start + size], by_kernel=True)
            kernel()

        self.give(channel, run)

    def _count(self) -> None:
        self.n_copies += 1
        if self.n_copies == self.fail_at:
            self.broken = True
        self._check()

    def _check_reaches(self, memory: torch.Tensor, *, by_kernel: bool = False) -> None:
        """A kernel reads each byte by its address; a copy is refused that reaches from one locked piece
        into the next."""
        pieces = [memory]
        if by_kernel:
            edges = {0, memory.nbytes}
            edges |= {address - memory.data_ptr() for address in self.locked}
            inside = sorted(edge for edge in edges if 0 <= edge <= memory.nbytes)
            raw = memory.view(torch.uint8)
            pieces = [raw[start:end] for start, end in pairwise(inside)]
        for piece in pieces:
            assert self._lies_in(self.allocated, piece) or self._lies_in(self.locked, piece), (
                "a copy touches memory that is neither the GPU's nor page-locked"
            )

    def _lies_in(self, regions: dict[int, int], memory: torch.Tensor) -> bool:
        start, end = memory.data_ptr(), memory.data_ptr() + memory.nbytes
        return any(address <= start and end <= address + n_bytes for address, n_bytes in regions.items())

    def _check(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
