"""A GPU: one arena, three streams, copies with two chunks in flight, and events instead of stopping the
device.

    executor's thread   start: `Ordering` names the pieces to wait for
    channel's thread    fills its stream, sleeps on events, posts completions; one operation at a time
    stream              compute, copy-in, copy-out: they run at once, but for the events they wait for

An operation falls into pieces: the blocks of one request, one extent of weights, one move, one step. Each
ends with its own event. A piece that touches the same bytes waits for that event on the device, neither for
the whole operation nor in a thread. An instance plans most of what depends on an operation only when that
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
from tokenmux.core.errors import DoesNotFit, ProcessFailed, TokenmuxError
from tokenmux.core.facts import DeviceFacts, ImageId
from tokenmux.core.plan import Channel
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
from tokenmux.device.cuda.locked_memory import IMAGE_PIECE_BYTES, KV_PIECE_BYTES, LockedMemory
from tokenmux.device.cuda.ordering import NOWHERE, Ordering, Places, Spans, merged
from tokenmux.device.cuda.paging import Pager
from tokenmux.device.device_protocol import Host, LaunchReport, Post, StepJob, channel_of
from tokenmux.device.fetching import Fetcher
from tokenmux.device.images import MappedImage, MappedImages, wait_until_usable
from tokenmux.device.memory import SharedMemory
from tokenmux.device.operation_progress import SupersededError, failed_copy, progress_of
from tokenmux.device.reader import GivenUpError
from tokenmux.device.spans import block_spans, move_pieces, paging_spans
from tokenmux.device.stops import Stops
from tokenmux.kernels.kv_page.choice import COPY_OVERHEAD_S
from tokenmux.messages.completions import CopyCompleted
from tokenmux.messages.launches import (
    ArenaMove,
    FetchLaunch,
    Launch,
    MoveLaunch,
    OperationId,
    PagedBlocks,
    PagingLaunch,
    PlacedImage,
    StepLaunch,
    WeightsLaunch,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")

_COPYING = (Channel.COPY_IN, Channel.COPY_OUT)

_NO_COPIES = Copies(())

_Copying = WeightsLaunch | PagingLaunch | MoveLaunch


class _Space(Enum):
    """Where bytes lie, for the ordering. Nothing writes an image once it may be copied."""

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
    is certain that it never will be. Its `work` is made on the channel's thread."""

    channel: Channel
    work: Callable[[], Work] = lambda: _NO_COPIES
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


class CudaDevice:
    """Four threads over three streams and one arena, and one for images that others have fetched. Raises
    DoesNotFit if the arena does not fit the GPU."""

    def __init__(
        self,
        facts: DeviceFacts,
        host_kv: SharedMemory,
        clock: Clock,
        post: Post,
        host: Host,
        gpu: Gpu,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        locked_chunk_bytes: int = LOCKED_CHUNK_BYTES,
        copy_overhead_s: float = COPY_OVERHEAD_S,
        paged_int8: bool = False,
        image_piece_bytes: int = IMAGE_PIECE_BYTES,
        kv_piece_bytes: int = KV_PIECE_BYTES,
    ) -> None:
        """With `paged_int8`, paged-out KV is stored in int8, which is not exact."""
        self._gpu = gpu
        self._chunk_bytes = chunk_bytes
        self._locked_chunk_bytes = locked_chunk_bytes
        self._image_piece_bytes = image_piece_bytes
        self._paged_int8 = paged_int8
        self.arena = gpu.allocate(facts.arena_bytes)
        self._aside = gpu.allocate(chunk_bytes)
        self._host_kv = LockedMemory(gpu, host_kv, kv_piece_bytes)
        self._slots = {
            channel: [Slot(gpu, channel, chunk_bytes) for _ in range(CHUNKS_IN_FLIGHT)]
            for channel in _COPYING
        }
        self._pager = Pager(
            self._host_kv.bytes,
            staged=not self._host_kv.locked,
            lock_bytes=kv_piece_bytes,
            chunk_bytes=chunk_bytes,
            bytes_per_s={
                Channel.COPY_IN: facts.copy_in_bytes_per_s,
                Channel.COPY_OUT: facts.copy_out_bytes_per_s,
            },
            copy_overhead_s=copy_overhead_s,
        )
        self._clock = clock
        self._post = post
        self._host = host
        self._ordering: Ordering[_Piece] = Ordering()
        self._stops = Stops()
        self._closing = Event()
        self._images: MappedImages[LockedMemory] = MappedImages(self._adopt, clock, post.broken)
        self._fetcher = Fetcher(self._images, host, clock, post, self._lock)
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
                host_kv.n_bytes,
            )

    def start(self, launch: Launch) -> None:
        stop = self._stops.begin(launch.operation)
        match launch:
            case StepLaunch():
                step = self._host.prepare_step(launch)
                piece = self._enter(_Piece(Channel.COMPUTE), *self._step_places(launch))
                self._submit(launch, [piece], lambda: self._step(step, stop, piece))
            case FetchLaunch():
                fetch = self._fetcher.prepare(launch, stop)
                self._submit(launch, [], lambda: _unless_given_up(fetch))
            case WeightsLaunch():
                images = [self._images.hold_for_copy(placed.image) for placed in launch.images]
                pieces = [
                    self._enter_image(placed, image)
                    for placed, image in zip(launch.images, images, strict=True)
                ]
                self._submit(launch, pieces, lambda: self._copy_weights(launch, images, pieces, stop))
            case PagingLaunch():
                channel = channel_of(launch)
                pieces = [self._enter_blocks(channel, blocks) for blocks in launch.requests]
                self._submit_copy(launch, pieces, stop)
            case MoveLaunch():
                self._submit_copy(launch, [self._enter_move(move) for move in launch.moves], stop)

    def stop_step(self, operation: OperationId) -> None:
        self._stops.ask(operation)

    def stop_copy(self, operation: OperationId) -> None:
        self._stops.ask(operation)

    def map_image(self, image: ImageId, n_bytes: int, descriptor: int, *, filled: bool) -> None:
        self._images.map(image, n_bytes, descriptor, filled=filled)

    def unmap_image(self, image: ImageId) -> None:
        self._images.unmap(image)

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
            raise ProcessFailed(
                f"another program took memory that was given back to the GPU: {error}"
            ) from error

    def close(self) -> None:
        """End the channels, then free all memory. What hangs in the driver keeps its memory until the
        process ends."""
        self._closing.set()
        self._stops.ask_all()
        self._fetcher.close()
        ended = [channel.close(CHANNEL_CLOSE_S) for channel in self._channels.values()]
        if not all(ended):
            _log.error("%s: an operation hangs in the driver; the process has to end", self._gpu.name)
            return
        for channel in STREAMS:
            self._despite_errors(lambda channel: self._gpu.record(channel).wait(), channel)
        self._despite_errors(LockedMemory.close, self._host_kv)
        self._despite_errors(MappedImages.close, self._images)
        buffers = (memory for slots in self._slots.values() for slot in slots for memory in slot.memory())
        for tensor in (self.arena, self._aside, *buffers):
            self._despite_errors(self._gpu.release, tensor)

    def _despite_errors(self, give_back: Callable[[T], None], what: T) -> None:
        """Free one thing on a GPU that may be broken and refuse even that: the rest must still be freed."""
        try:
            give_back(what)
        except RuntimeError as error:
            _log.warning("%s: while closing: %s", self._gpu.name, error)

    # ── on the executor's thread: what touches which bytes ──────────────────────────────────────────────────

    def _enter(self, piece: _Piece, reads: Places, writes: Places) -> _Piece:
        piece.number, piece.after = self._ordering.enter(piece.channel, piece, reads, writes)
        return piece

    def _step_places(self, launch: StepLaunch) -> tuple[Places, Places]:
        shape = self._host.kv_shape(launch.model)
        size = shape.block_bytes
        weights = self._host.weights_span(launch.model)
        blocks = [(segment.blocks, segment.start) for segment in launch.segments]
        read = block_spans([indices for indices, _ in blocks], size)
        tail = block_spans([indices[n_held // shape.block_size :] for indices, n_held in blocks], size)
        begun = block_spans([indices[shape.blocks_for(n_held) :] for indices, n_held in blocks], size)
        reads: Places = {_Space.ARENA: merged((weights, *read)), _Space.TAIL: tail}
        return reads, {_Space.ARENA: begun, _Space.TAIL: tail}

    def _enter_image(self, placed: PlacedImage, image: MappedImage[LockedMemory]) -> _Piece:
        def work() -> Copies:
            copies, place = [], placed.offset
            for piece in image.memory.pieces():
                copies.append(Copy(self.arena[place : place + len(piece)], piece))
                place += len(piece)
            return Copies(tuple(copies), staged=not image.memory.locked)

        span = (placed.offset, placed.offset + placed.n_bytes)
        return self._enter(_Piece(Channel.COPY_IN, work), NOWHERE, _both((span,)))

    def _enter_blocks(self, channel: Channel, blocks: PagedBlocks) -> _Piece:
        shape = self._host.kv_shape(blocks.model)
        spans = paging_spans(blocks, shape.block_bytes)
        device = merged((s.device, s.device + s.n_bytes) for s in spans)
        host: Places = {_Space.HOST_KV: merged((s.host, s.host + s.n_bytes) for s in spans)}

        def work() -> Work:
            int8 = self._host.kv_dtype(blocks.model) if self._paged_int8 else None
            return self._pager.work(channel, self.arena, blocks, shape, int8)

        piece = _Piece(channel, work)
        if channel is Channel.COPY_IN:
            return self._enter(piece, host, _both(device))
        return self._enter(piece, {_Space.ARENA: device}, host)

    def _enter_move(self, move: ArenaMove) -> _Piece:
        copies: list[Copy] = []
        for source, target, n_bytes, aside in move_pieces(move, self._chunk_bytes):
            begin, end = self.arena[source : source + n_bytes], self.arena[target : target + n_bytes]
            if aside:
                copies += (Copy(self._aside[:n_bytes], begin), Copy(end, self._aside[:n_bytes]))
            else:
                copies.append(Copy(end, begin))
        source_span = ((move.source, move.source + move.n_bytes),)
        target_span = ((move.target, move.target + move.n_bytes),)
        work = Copies(tuple(copies))
        return self._enter(_Piece(Channel.COPY_IN, lambda: work), _both(source_span), _both(target_span))

    # ── on the channels' threads ────────────────────────────────────────────────────────────────────────────

    def _submit(
        self, launch: Launch, pieces: Sequence[_Piece], job: Callable[[], LaunchReport | None]
    ) -> None:
        """Run the job on its channel, and post its result once no operation has to wait for its pieces any
        longer."""

        def run() -> None:
            try:
                done = job()
            except _LostError:
                return
            finally:
                self._stops.end(launch.operation)
                for piece in pieces:
                    piece.lost = not piece.passed.is_set()
                    piece.passed.set()
                    self._ordering.leave(piece.channel, piece.number)
            if done is not None:
                self._post.tell(done)

        self._channels[channel_of(launch)].submit(launch.operation, run)

    def _submit_copy(self, launch: _Copying, pieces: Sequence[_Piece], stop: Event) -> None:
        self._submit(launch, pieces, lambda: self._copy(launch, pieces, stop))

    def _come_after(self, piece: _Piece) -> None:
        """Make the stream's later work wait for the pieces that must come first.

        An event that is not recorded yet holds nothing back, so this thread sleeps until the other thread has
        recorded it. That ends: pieces wait only for those entered before them, and a thread that gives up a
        piece says so.
        """
        for earlier in piece.after:
            earlier.passed.wait()
            if earlier.lost:
                raise _LostError
            if earlier.end is not None:
                earlier.end.hold(piece.channel)

    def _pass(self, piece: _Piece) -> None:
        piece.end = self._gpu.record(piece.channel)
        piece.passed.set()

    def _step(self, step: StepJob, stop: Event, piece: _Piece) -> None:
        if self._closing.is_set():
            raise _LostError
        self._come_after(piece)
        with self._gpu.running(Channel.COMPUTE):
            step.run(stop, self._post, self._settle)
        self._pass(piece)

    def _settle(self) -> None:
        self._gpu.record(Channel.COMPUTE).wait()

    def _copy_weights(
        self,
        launch: WeightsLaunch,
        images: Sequence[MappedImage[LockedMemory]],
        pieces: Sequence[_Piece],
        stop: Event,
    ) -> CopyCompleted:
        try:
            for image in images:
                wait_until_usable(image, stop)
        except (TokenmuxError, SupersededError) as problem:
            if self._closing.is_set():
                raise _LostError from None
            for piece in pieces:
                self._come_after(piece)
                self._pass(piece)
            done = failed_copy(launch.operation, self._clock.now_s(), problem)
        else:
            done = self._copy(launch, pieces, stop)
        for image in images:
            self._images.let_go(image)
        return done

    def _copy(self, launch: _Copying, pieces: Sequence[_Piece], stop: Event) -> CopyCompleted:
        works = [piece.work() for piece in pieces]
        n_bytes = sum(work.n_bytes for work in works)
        report = progress_of(launch.operation, n_bytes, self._clock, self._post)
        in_flight: deque[_InFlight] = deque()
        channel = channel_of(launch)
        slots = cycle(self._slots[channel])
        is_stopped = False

        def land() -> None:
            chunk = in_flight.popleft()
            chunk.end.wait()
            chunk.land()
            report(chunk.n_bytes)

        for piece, work in zip(pieces, works, strict=True):
            self._come_after(piece)
            for chunk in work.chunks(self._chunk_bytes if work.staged else self._locked_chunk_bytes):
                if len(in_flight) == CHUNKS_IN_FLIGHT:
                    land()
                if self._closing.is_set():
                    raise _LostError
                if stop.is_set():
                    is_stopped = True
                    break
                landing = chunk.give(next(slots))
                in_flight.append(_InFlight(self._gpu.record(channel), chunk.n_bytes, landing))
            # The host's part of a staged copy is not in the stream: it must be done before other pieces may
            # follow.
            while in_flight and work.staged:
                land()
            self._pass(piece)
        while in_flight:
            land()
        if is_stopped:
            return failed_copy(launch.operation, self._clock.now_s(), SupersededError())
        return CopyCompleted(launch.operation, self._clock.now_s())

    # ── on threads that fill images ─────────────────────────────────────────────────────────────────────────

    def _lock(self, memory: SharedMemory) -> LockedMemory:
        return LockedMemory(self._gpu, memory, self._image_piece_bytes)

    def _adopt(self, image: ImageId, memory: SharedMemory, opened: Callable[[], None]) -> LockedMemory:
        self._host.adopt_image(image, memory.view(), opened)
        return self._lock(memory)


def _unless_given_up(fetch: Callable[[], CopyCompleted]) -> CopyCompleted:
    try:
        return fetch()
    except GivenUpError:
        raise _LostError from None


def _both(spans: Spans) -> Places:
    """The arena, whatever it holds."""
    return {_Space.ARENA: spans, _Space.TAIL: spans}
