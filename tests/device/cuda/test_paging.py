"""How blocks are paged: the choice by what the copy engines would lose, chunks of blocks, and what a
launch is told."""

from dataclasses import dataclass, field

import pytest
import torch

from tests.device.cuda.fake_gpu import FakeGpu
from tests.device.launching import paged_blocks
from tokenmux.core.facts import DeviceFacts, KvShape, ModelId
from tokenmux.core.handles import Transfer
from tokenmux.core.plan import Channel
from tokenmux.device.cuda.chunks import Copies, Slot, Work
from tokenmux.device.cuda.paging import Blocks, Pager
from tokenmux.kernels.kv_page.choice import COPY_OVERHEAD_S
from tokenmux.kernels.kv_page.quantised import int8_error_bound
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.ledger import Ledger

KB = 1 << 10
SLAB_BYTES = 1 << 20
BUS_BYTES_PER_S = 50e9
CHANNELS = (Channel.COPY_OUT, Channel.COPY_IN)


def shape(block_bytes: int) -> KvShape:
    return KvShape(n_layers=1, n_kv_heads=1, head_dim=block_bytes // 2, dtype_bytes=1, block_size=1)


@dataclass
class Paged:
    """A request of `n_blocks` on a device; in between, `scattered` takes every other block, on both sides."""

    block_bytes: int
    n_blocks: int
    scattered: bool = True
    lockable: bool = True
    chunk_bytes: int = 64 * KB
    shape: KvShape | None = None
    gpu: FakeGpu = field(init=False)

    def __post_init__(self) -> None:
        facts = DeviceFacts(
            "small", 4 * SLAB_BYTES, 4 * SLAB_BYTES, 1.0, 1.0, 1.0, 1.0, slab_bytes=SLAB_BYTES
        )
        self.gpu = FakeGpu(seed=3, lockable=self.lockable)
        self.ledger = Ledger(facts, HostCache(0))
        self.arena = self.gpu.allocate(facts.arena_bytes)
        self.host = (
            self.gpu.allocate_locked(facts.host_kv_bytes) if self.lockable else torch.zeros_like(self.arena)
        )
        self.arena.random_(1, 256)
        step = 2 if self.scattered else 1
        n = step * self.n_blocks
        size = self.block_bytes
        device, host = self.ledger.blocks.allocate(size, n), self.ledger.host_blocks.allocate(size, n)
        assert device is not None
        assert host is not None
        pairs = zip(device[::step], host[::step], strict=True)
        of_blocks = self.shape = self.shape or shape(size)
        self.transfers = tuple(Transfer(of_blocks, there, here) for there, here in pairs)
        self.slots = {
            channel: [Slot(self.gpu, channel, self.chunk_bytes) for _ in range(2)] for channel in CHANNELS
        }

    def work(
        self, channel: Channel, copy_overhead_s: float = COPY_OVERHEAD_S, int8: torch.dtype | None = None
    ) -> Work:
        pager = Pager(
            self.host,
            staged=not self.lockable,
            chunk_bytes=self.chunk_bytes,
            bytes_per_s=dict.fromkeys(CHANNELS, BUS_BYTES_PER_S),
            copy_overhead_s=copy_overhead_s,
            lock_bytes=1 << 30,
        )
        blocks = paged_blocks(ModelId("a"), self.transfers, self.ledger)
        assert self.shape is not None
        return pager.work(channel, self.arena, blocks, self.shape, int8)

    def run(self, work: Work, channel: Channel) -> None:
        """All chunks, two in flight."""
        in_flight = []
        for number, chunk in enumerate(work.chunks(self.chunk_bytes)):
            if len(in_flight) == 2:
                event, land = in_flight.pop(0)
                event.wait()
                land()
            land = chunk.give(self.slots[channel][number % 2])
            in_flight.append((self.gpu.record(channel), land))
        for event, land in in_flight:
            event.wait()
            land()

    def blocks(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Device's and host's side of each."""
        size = self.block_bytes
        indices = [
            (self.ledger.blocks.block_index(t.device), self.ledger.host_blocks.block_index(t.host))
            for t in self.transfers
        ]
        return [
            (self.arena[there * size : (there + 1) * size], self.host[here * size : (here + 1) * size])
            for there, here in indices
        ]


@pytest.mark.parametrize("channel", CHANNELS)
def test_small_blocks_go_by_kernel_and_large_ones_by_copy_engine(channel: Channel) -> None:
    assert isinstance(Paged(16 * KB, 5).work(channel), Blocks)
    assert isinstance(Paged(256 * KB, 5, chunk_bytes=512 * KB).work(channel), Blocks)
    large = Paged(256 * KB, 5, chunk_bytes=512 * KB).work(channel, copy_overhead_s=1e-6)
    assert isinstance(large, Copies)


def test_small_copies_are_given_as_they_are_and_at_once() -> None:
    """A slice of a tensor takes as long as submitting a copy, and Python's time is the steps' beside it."""
    paged = Paged(2 * KB, 30)
    work = paged.work(Channel.COPY_OUT, copy_overhead_s=0.0)
    assert isinstance(work, Copies)
    chunks = list(work.chunks(16 * KB))
    assert [len(chunk.copies) for chunk in chunks] == [8, 8, 8, 6]
    given = [copy for chunk in chunks for copy in chunk.copies]
    assert all(copy is own for copy, own in zip(given, work.copies, strict=True))
    paged.run(work, Channel.COPY_OUT)
    assert paged.gpu.n_submissions == len(list(work.chunks(paged.chunk_bytes)))


def test_small_blocks_that_are_neighbours_on_both_sides_are_large_copies() -> None:
    work = Paged(16 * KB, 30, scattered=False).work(Channel.COPY_OUT, copy_overhead_s=2e-6)
    assert isinstance(work, Copies)
    assert len(work.copies) == 1


@pytest.mark.parametrize(("block_bytes", "chunk_bytes"), [(16 * KB + 8, 64 * KB), (16 * KB, 8 * KB)])
def test_what_the_kernel_cannot_take_goes_by_copy_engine(block_bytes: int, chunk_bytes: int) -> None:
    """Blocks off the 16-byte grid, and blocks that no slot holds."""
    assert isinstance(Paged(block_bytes, 5, chunk_bytes=chunk_bytes).work(Channel.COPY_OUT, 1.0), Copies)


def test_nothing_to_page_is_no_work() -> None:
    paged = Paged(16 * KB, 0)
    assert list(paged.work(Channel.COPY_OUT).chunks(paged.chunk_bytes)) == []


@pytest.mark.parametrize("copy_overhead_s", [0.0, 1.0], ids=["engines", "kernel"])
@pytest.mark.parametrize("lockable", [True, False], ids=["page-locked", "staged"])
@pytest.mark.parametrize("block_bytes", [2 * KB, 12 * KB])
def test_blocks_go_out_and_come_back_and_nothing_else_changes(
    block_bytes: int, lockable: bool, copy_overhead_s: float
) -> None:
    paged = Paged(block_bytes, 30, lockable=lockable)
    before = paged.arena.clone()
    work = paged.work(Channel.COPY_OUT, copy_overhead_s)
    assert work.n_bytes == 30 * block_bytes
    assert sum(chunk.n_bytes for chunk in work.chunks(paged.chunk_bytes)) == work.n_bytes
    paged.run(work, Channel.COPY_OUT)
    assert all(torch.equal(there, here) for there, here in paged.blocks())
    assert int(paged.host.count_nonzero()) == 30 * block_bytes
    assert bool(paged.gpu.n_launches) == bool(copy_overhead_s)
    for there, _ in paged.blocks():
        there.zero_()
    paged.run(paged.work(Channel.COPY_IN, copy_overhead_s), Channel.COPY_IN)
    assert torch.equal(paged.arena, before)


def test_a_launch_takes_no_more_blocks_than_its_table_of_offsets_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenmux.device.cuda.paging.MAX_BLOCKS", 7)
    paged = Paged(2 * KB, 30)
    work = paged.work(Channel.COPY_OUT)
    assert [chunk.n_bytes // (2 * KB) for chunk in work.chunks(paged.chunk_bytes)] == [7, 7, 7, 7, 2]
    paged.run(work, Channel.COPY_OUT)
    assert all(torch.equal(there, here) for there, here in paged.blocks())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lockable", [True, False], ids=["page-locked", "staged"])
def test_in_int8_blocks_come_back_within_the_bound_and_cross_the_bus_at_half_their_size(
    dtype: torch.dtype, lockable: bool
) -> None:
    paged = Paged(dtype.itemsize * 8 * KB, 30, lockable=lockable, shape=KvShape(4, 2, 64, dtype.itemsize, 8))
    numbers = paged.arena.view(dtype)
    numbers.copy_(torch.randn(numbers.shape, generator=torch.Generator().manual_seed(1)))
    before = paged.arena.clone()
    work = paged.work(Channel.COPY_OUT, 0.0, dtype)
    assert work.n_bytes == 30 * paged.block_bytes, "the books count whole blocks"
    paged.run(work, Channel.COPY_OUT)
    assert int(paged.host.count_nonzero()) <= 30 * (8 * KB + 4 * 128)
    for there, _ in paged.blocks():
        there.zero_()
    paged.run(paged.work(Channel.COPY_IN, 0.0, dtype), Channel.COPY_IN)
    rows, expected = (memory.view(dtype).float().view(-1, 64) for memory in (paged.arena, before))
    bound = int8_error_bound(expected.abs().amax(dim=1, keepdim=True), dtype)
    assert ((rows - expected).abs() <= bound).all()
    assert int((rows != expected).any(dim=1).sum()) <= 30 * 128, "only what was paged has changed"
    assert not torch.equal(paged.arena, before)


def test_what_the_kernel_cannot_quantise_is_paged_as_it_is() -> None:
    """Heads of 24 numbers: both ways, so that what went out exact comes in exact."""
    paged = Paged(24 * 2 * 2 * 8, 5, shape=KvShape(1, 1, 24, 2, 8))
    assert isinstance(paged.work(Channel.COPY_OUT, 0.0, torch.float16), Copies)
