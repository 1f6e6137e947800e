"""A GPU: one arena, three streams, copies with two chunks in flight, and events instead of stopping the
device.

    engine's thread     start: turns handles into addresses; `Ordering` names the pieces to wait for
    channel's thread    fills its stream, sleeps on events, posts completions; one operation at a time
    stream              compute, copy-in, copy-out: they run at once, but for the events they wait for

An operation falls into pieces: the blocks of one request, one extent of weights, one move, one step. Each
ends with its own event. A piece that touches the same bytes waits for that event on the device, neither for
the whole operation nor in a thread. The instance plans most of what depends on an operation only when that
has completed; nothing here relies on it.

Host memory is page-locked in place if the system allows it, so that the copy engines read images and
paged-out KV directly. Otherwise copies pass through two page-locked chunks for each direction, filled and
emptied by the channel's thread. KV with small blocks is paged by a kernel on the same streams, since the copy
engines would lose too much time with each block (`paging.py`).

A page-out copies whole blocks, but its books say up to which token they were computed when it began. So it
does not wait for a step that adds tokens to the last block of the same request, nor the step for it: what a
step adds to a block that already holds tokens counts as a space of its own (`_Space.TAIL`), while a block
that it begins had another owner before and is written like anything else.

Not done: graphs. A captured decode step would be a `StepJob` that replays instead of launching; it needs
index arrays at fixed addresses and weights that come back to the extent at which the graph was captured, or
virtual-memory mapping under it. Tests run all this on streams that do each thing as late as their order
permits, and on a GPU where there is one.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import cycle
from threading import Event
from typing import TypeVar

import torch

from tokenmux.core.clock import Clock
from tokenmux.core.errors import DoesNotFit, TokenmuxError, WorkerFailed
from tokenmux.core.event import SUPERSEDED, CopyDone
from tokenmux.core.facts import DeviceFacts, Image, ImageId
from tokenmux.core.handles import ExtentMove, Transfer
from tokenmux.core.plan import Channel
from tokenmux.core.request import RequestId
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedCopy,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.device.channel import CHANNEL_CLOSE_S, ChannelThread
from tokenmux.device.cuda.chunks import (
    CHUNK_BYTES,
    CHUNKS_IN_FLIGHT,
    LOCKED_CHUNK_BYTES,
    Copies,
    Copy,
    Landing,
    Slot,
    Work,
)
from tokenmux.device.cuda.gpu import STREAMS, Gpu, GpuEvent
from tokenmux.device.cuda.host_pages import PAGE_BYTES, HostPages, PagedImage
from tokenmux.device.cuda.ordering import NOWHERE, Ordering, Places, Spans, merged
from tokenmux.device.cuda.paging import KvDtype, Pager
from tokenmux.device.device_protocol import Host, Post, StepJob
from tokenmux.device.memory import Memory
from tokenmux.device.operation_progress import SupersededError, progress_of, until_superseded
from tokenmux.device.reader import GivenUpError, Reader
from tokenmux.device.spans import block_spans, move_pieces, paging_spans
from tokenmux.kernels.kv_page.choice import COPY_OVERHEAD_S
from tokenmux.scheduler.memory.ledger import Ledger

_log = logging.getLogger(__name__)

T = TypeVar("T")

_COPYING = (Channel.COPY_IN, Channel.COPY_OUT)

_NO_COPIES = Copies(())


LOCK_BYTES = 1 << 30
"""Memory for paged-out KV is page-locked in pieces of this size: other threads can launch in between, and
drivers refuse 512 GiB."""


class _Space(Enum):
    """Where bytes lie, for the ordering. Images are spaces of their own, named by their ids."""

    ARENA = 1
    TAIL = 2
    """The arena again: tokens that steps in flight add to blocks."""
    HOST_KV = 3


class _LostError(Exception):
    """A piece that has to come first will never be done: the device is closing, or broken and has reported
    it."""


@dataclass(slots=True, eq=False)
class _Piece:
    """A part of an operation that others can wait for. `passed` is set once `end` is recorded, or when it
    is certain that it never will be."""

    channel: Channel
    work: Work = _NO_COPIES
    number: int = 0
    after: tuple["_Piece", ...] = ()
    end: GpuEvent | None = None
    lost: bool = False
    passed: Event = field(default_factory=Event)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A chunk on a stream, and what the host has to do once it is done."""

    end: GpuEvent
    n_bytes: int
    land: Landing


class _HostMemory:
    """Memory of ours that the GPU copies from and to, page-locked in pieces of `piece_bytes` if the system
    allows it."""

    def __init__(self, gpu: Gpu, memory: Memory, piece_bytes: int) -> None:
        self._gpu = gpu
        self._memory = memory
        self._locked: list[int] = []
        n_bytes = len(memory.buffer)
        for start in range(0, n_bytes, piece_bytes):
            if not gpu.lock(memory.address + start, min(piece_bytes, n_bytes - start)):
                self._unlock()
                break
            self._locked.append(memory.address + start)
        self.locked = bool(self._locked)
        self.bytes = memory.as_tensor()

    def close(self) -> None:
        self._unlock()
        self._memory.close()

    def _unlock(self) -> None:
        while self._locked:
            self._gpu.unlock(self._locked.pop())


class CudaDevice:
    """Four threads over three streams and one arena. Raises DoesNotFit if the arena does not fit the GPU."""

    def __init__(
        self,
        facts: DeviceFacts,
        ledger: Ledger,
        clock: Clock,
        post: Post,
        host: Host,
        gpu: Gpu,
        chunk_bytes: int = CHUNK_BYTES,
        locked_chunk_bytes: int = LOCKED_CHUNK_BYTES,
        copy_overhead_s: float = COPY_OVERHEAD_S,
        kv_dtype: KvDtype | None = None,
        page_bytes: int = PAGE_BYTES,
        lock_bytes: int = LOCK_BYTES,
    ) -> None:
        """With `kv_dtype`, the dtype of each request's KV, paged-out KV is stored in int8, which is not
        exact."""
        self._gpu = gpu
        self._chunk_bytes = chunk_bytes
        self._locked_chunk_bytes = locked_chunk_bytes
        self.arena = gpu.allocate(facts.arena_bytes)
        self._aside = gpu.allocate(chunk_bytes)
        self._host_kv = _HostMemory(gpu, Memory(facts.host_kv_bytes, touch=True), lock_bytes)
        self._pages = HostPages(gpu, page_bytes)
        self._slots = {
            channel: [Slot(gpu, channel, chunk_bytes) for _ in range(CHUNKS_IN_FLIGHT)]
            for channel in _COPYING
        }
        self._pager = Pager(
            ledger,
            self._host_kv.bytes,
            staged=not self._host_kv.locked,
            lock_bytes=lock_bytes,
            chunk_bytes=chunk_bytes,
            bytes_per_s={
                Channel.COPY_IN: facts.copy_in_bytes_per_s,
                Channel.COPY_OUT: facts.copy_out_bytes_per_s,
            },
            copy_overhead_s=copy_overhead_s,
            kv_dtype=kv_dtype,
        )
        self._images: dict[ImageId, PagedImage] = {}
        self._ledger = ledger
        self._clock = clock
        self._post = post
        self._host = host
        self._ordering: Ordering[_Piece] = Ordering()
        self._interrupted = Event()
        self._superseded: set[int] = set()
        self._closing = Event()
        self._reader = Reader(clock)
        self._channels = {
            channel: ChannelThread(channel.name.lower().replace("_", "-"), post.broken) for channel in Channel
        }
        host.attach(self.arena)
        if self._host_kv.locked:
            _log.info("%s: host memory is page-locked in place", gpu.name)
        else:
            _log.warning(
                "%s: copies of paged-out KV pass through page-locked chunks, which is slower: allow "
                "the server to lock %d bytes",
                gpu.name,
                facts.host_kv_bytes,
            )

    def start(self, started: Started) -> None:
        match started:
            case StartedStep():
                self._interrupted.clear()
                step = self._host.prepare_step(started)
                piece = self._enter(_Piece(Channel.COMPUTE), *self._step_places(started, step))
                self._submit(started, [piece], lambda: self._step(started, step, piece))
            case StartedFetch():
                dropped = {image: self._images.pop(image) for image in started.dropped}
                forgotten: Places = {id: ((0, image.n_bytes),) for id, image in dropped.items()}
                piece = self._enter(_Piece(Channel.FETCH), NOWHERE, forgotten)
                self._submit(started, [piece], lambda: self._fetch(started, list(dropped.values()), piece))
            case StartedActivation():
                self._submit_copy(started, [self._enter_image(image) for image in started.images])
            case StartedPageIn() | StartedPageOut():
                pieces = [
                    self._enter_blocks(started.channel, paged.request, paged.transfers)
                    for paged in started.paged
                ]
                self._submit_copy(started, pieces)
            case StartedCompaction():
                self._submit_copy(started, [self._enter_move(move) for move in started.moves])

    def interrupt(self) -> None:
        self._interrupted.set()

    def supersede(self, operation: int) -> None:
        self._superseded.add(operation)

    def resize(self, arena_bytes: int) -> None:
        before = self.arena.numel()
        self._host.detach()
        self._gpu.release(self.arena)
        try:
            self.arena = self._gpu.allocate(arena_bytes)
        except DoesNotFit:
            self.arena = self._take_back(before)
            raise
        finally:
            self._host.attach(self.arena)

    def _take_back(self, n_bytes: int) -> torch.Tensor:
        try:
            return self._gpu.allocate(n_bytes)
        except DoesNotFit as error:
            raise WorkerFailed(
                f"another program took memory that was given back to the GPU: {error}"
            ) from error

    def close(self) -> None:
        """End the channels, then free all memory. What hangs in the driver keeps its memory until the
        process ends."""
        self._closing.set()
        self._interrupted.set()
        self._reader.close()
        ended = [channel.close(CHANNEL_CLOSE_S) for channel in self._channels.values()]
        if not all(ended):
            _log.error("%s: an operation hangs in the driver; the process has to end", self._gpu.name)
            return
        for channel in STREAMS:
            self._despite_errors(lambda channel: self._gpu.record(channel).wait(), channel)
        self._despite_errors(_HostMemory.close, self._host_kv)
        self._despite_errors(HostPages.unlock, self._pages)
        self._images.clear()
        self._pages.close()
        buffers = (memory for slots in self._slots.values() for slot in slots for memory in slot.memory())
        for tensor in (self.arena, self._aside, *buffers):
            self._despite_errors(self._gpu.release, tensor)

    def _despite_errors(self, give_back: Callable[[T], None], what: T) -> None:
        """Free one thing on a GPU that may be broken and refuse even that: the rest must still be freed."""
        try:
            give_back(what)
        except RuntimeError as error:
            _log.warning("%s: while closing: %s", self._gpu.name, error)

    # ── on the engine's thread: what touches which bytes ────────────────────────────────────────────────────

    def _enter(self, piece: _Piece, reads: Places, writes: Places) -> _Piece:
        piece.number, piece.after = self._ordering.enter(piece.channel, piece, reads, writes)
        return piece

    def _step_places(self, started: StartedStep, step: StepJob) -> tuple[Places, Places]:
        size = started.model.kv.block_bytes
        weights = [self._extent(image) for image in started.model.images]
        blocks = step.kv_blocks()
        read = block_spans([indices for indices, _ in blocks], size)
        shape = started.model.kv
        tail = block_spans([indices[n_held // shape.block_size :] for indices, n_held in blocks], size)
        begun = block_spans([indices[shape.blocks_for(n_held) :] for indices, n_held in blocks], size)
        reads: Places = {_Space.ARENA: merged((*weights, *read)), _Space.TAIL: tail}
        return reads, {_Space.ARENA: begun, _Space.TAIL: tail}

    def _enter_image(self, image: Image) -> _Piece:
        start, end = self._extent(image)
        paged = self._images[image.id]
        copies, place = [], start
        for piece in paged.pieces():
            copies.append(Copy(self.arena[place : place + len(piece)], piece))
            place += len(piece)
        work = Copies(tuple(copies), staged=not paged.locked)
        reads: Places = {image.id: ((0, image.n_bytes),)}
        return self._enter(_Piece(Channel.COPY_IN, work), reads, _both(((start, end),)))

    def _enter_blocks(self, channel: Channel, request: RequestId, transfers: Sequence[Transfer]) -> _Piece:
        spans = paging_spans(self._ledger, transfers)
        device = merged((s.device, s.device + s.n_bytes) for s in spans)
        host: Places = {_Space.HOST_KV: merged((s.host, s.host + s.n_bytes) for s in spans)}
        piece = _Piece(channel, self._pager.work(channel, self.arena, request, transfers, spans))
        if channel is Channel.COPY_IN:
            return self._enter(piece, host, _both(device))
        return self._enter(piece, {_Space.ARENA: device}, host)

    def _enter_move(self, move: ExtentMove) -> _Piece:
        copies: list[Copy] = []
        for source, target, n_bytes, aside in move_pieces(move, self._chunk_bytes):
            begin, end = self.arena[source : source + n_bytes], self.arena[target : target + n_bytes]
            if aside:
                copies += (Copy(self._aside[:n_bytes], begin), Copy(end, self._aside[:n_bytes]))
            else:
                copies.append(Copy(end, begin))
        source_span = ((move.source, move.source + move.n_bytes),)
        target_span = ((move.target, move.target + move.n_bytes),)
        piece = _Piece(Channel.COPY_IN, Copies(tuple(copies)))
        return self._enter(piece, _both(source_span), _both(target_span))

    def _extent(self, image: Image) -> tuple[int, int]:
        start = self._ledger.arena.offset(self._ledger.extent(image.id))
        return start, start + image.n_bytes

    # ── on the channels' threads ────────────────────────────────────────────────────────────────────────────

    def _submit(self, started: Started, pieces: Sequence[_Piece], job: Callable[[], CopyDone | None]) -> None:
        """Run the job on its channel, and post its result once no operation has to wait for its pieces any
        longer."""

        def run() -> None:
            try:
                done = job()
            except _LostError:
                return
            finally:
                self._superseded.discard(started.id)
                for piece in pieces:
                    piece.lost = not piece.passed.is_set()
                    piece.passed.set()
                    self._ordering.leave(piece.channel, piece.number)
            if done is not None:
                self._post.done(done)

        self._channels[started.channel].submit(started.id, run)

    def _submit_copy(self, started: StartedCopy, pieces: Sequence[_Piece]) -> None:
        self._submit(started, pieces, lambda: self._copy(started, pieces))

    def _come_after(self, piece: _Piece) -> None:
        """Make the stream's later work wait for the pieces that must come first. The fetch channel has no
        stream: there, this thread waits.

        An event that is not recorded yet holds nothing back, so this thread sleeps until the other thread has
        recorded it. That ends: pieces wait only for those entered before them, and a thread that gives up a
        piece says so.
        """
        for earlier in piece.after:
            earlier.passed.wait()
            if earlier.lost:
                raise _LostError
            if earlier.end is not None and piece.channel is Channel.FETCH:
                earlier.end.wait()
            elif earlier.end is not None:
                earlier.end.hold(piece.channel)

    def _pass(self, piece: _Piece) -> None:
        piece.end = self._gpu.record(piece.channel)
        piece.passed.set()

    def _step(self, started: StartedStep, step: StepJob, piece: _Piece) -> None:
        if self._closing.is_set():
            raise _LostError
        self._come_after(piece)
        with self._gpu.running(Channel.COMPUTE):
            step.run(started.id, self._interrupted, self._post, self._settle)
        self._pass(piece)

    def _settle(self) -> None:
        self._gpu.record(Channel.COMPUTE).wait()

    def _copy(self, started: StartedCopy, pieces: Sequence[_Piece]) -> CopyDone:
        report = progress_of(started, self._clock, self._post)
        in_flight: deque[_InFlight] = deque()
        slots = cycle(self._slots[started.channel])
        error = ""

        def land() -> None:
            chunk = in_flight.popleft()
            chunk.end.wait()
            chunk.land()
            report(chunk.n_bytes)

        for piece in pieces:
            self._come_after(piece)
            size = self._chunk_bytes if piece.work.staged else self._locked_chunk_bytes
            for chunk in piece.work.chunks(size):
                if len(in_flight) == CHUNKS_IN_FLIGHT:
                    land()
                if self._closing.is_set():
                    raise _LostError
                if started.id in self._superseded:
                    error = SUPERSEDED
                    break
                landing = chunk.give(next(slots))
                in_flight.append(_InFlight(self._gpu.record(started.channel), chunk.n_bytes, landing))
            # The host's part of a staged copy is not in the stream: it must be done before other pieces may
            # follow.
            while in_flight and piece.work.staged:
                land()
            self._pass(piece)
        while in_flight:
            land()
        return CopyDone(self._clock.now_s(), started.id, error)

    def _fetch(self, started: StartedFetch, dropped: Sequence[PagedImage], piece: _Piece) -> CopyDone:
        self._come_after(piece)
        for forgotten in dropped:
            forgotten.close()
        error = ""
        read: dict[ImageId, PagedImage] = {}
        report = until_superseded(progress_of(started, self._clock, self._post), started.id, self._superseded)

        def job(told: Callable[[int], None]) -> None:
            for image in started.images:
                paged = read[image.id] = self._pages.take(image.n_bytes)
                self._host.read_image(image, paged.view(), told)
                paged.lock()

        def discard() -> None:
            for unusable in read.values():
                unusable.close()

        try:
            self._reader.read(started.images, job, discard, report)
        except GivenUpError:
            raise _LostError from None
        except (TokenmuxError, SupersededError) as problem:
            error = str(problem)
        else:
            self._images.update(read)
        piece.passed.set()
        return CopyDone(self._clock.now_s(), started.id, error)


def _both(spans: Spans) -> Places:
    """The arena, whatever it holds."""
    return {_Space.ARENA: spans, _Space.TAIL: spans}
