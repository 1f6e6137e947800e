"""The virtual GPU: an arena of host memory, copies on threads of their own, steps on real weights.

The arena is one allocation of the budget, touched once so that no copy ever meets a page fault. Weights come from the host cache's
buffers, KV goes to and from a second arena for paged-out blocks. Copies are plain `memmove`s of at most `COPY_CHUNK_BYTES`, with the
interpreter lock released, so that they overlap with steps as far as the machine's memory bandwidth allows.
"""

import ctypes
from collections.abc import Callable, Iterable
from threading import Event
from typing import Protocol

from tokenmux.engine.core.clock import Clock
from tokenmux.engine.core.errors import TokenmuxError
from tokenmux.engine.core.event import CopyDone
from tokenmux.engine.core.facts import DeviceFacts, Image, ImageId
from tokenmux.engine.core.plan import Activate, Channel, Compact, Fetch, PageIn, PageOut, Step
from tokenmux.engine.device.channel import ChannelThread
from tokenmux.engine.device.interface import Post
from tokenmux.engine.device.memory import Memory
from tokenmux.engine.instance.started import Started
from tokenmux.engine.memory.ledger import Ledger, Transfer
from tokenmux.engine.memory.slabs import BlockHandle, SlabPool

COPY_CHUNK_BYTES = 16 << 20
"""Between chunks the interpreter lock changes hands and a closing device is noticed; larger chunks were no faster."""

PROGRESS_INTERVAL_S = 0.2
"""A person sees five changes a second as motion."""

Span = tuple[int, int, int]
"""(target address, source address, bytes)"""


class StepJob(Protocol):
    """A step that is ready to run, on the compute channel's thread."""

    def run(self, operation: int, interrupted: Event, post: Post) -> None:
        """Run the iterations, posting `drawn` after each and `done` at the end."""
        ...


class Host(Protocol):
    """What the device needs of its surroundings."""

    def read_image(self, image: Image, into: memoryview, progress: Callable[[int], None]) -> None:
        """Fill the buffer with an image's bytes from disk, telling `progress` of every piece.

        Raises TokenmuxError where the file is bad.
        """
        ...

    def prepare_step(self, started: Started) -> StepJob:
        """Resolve what a step needs, on the engine's thread."""
        ...


class CpuDevice:
    """Four threads, one per channel, over one arena."""

    def __init__(self, facts: DeviceFacts, ledger: Ledger, clock: Clock, post: Post, host: Host) -> None:
        self.arena = Memory(facts.arena_bytes, touch=True)
        self._host_kv = Memory(facts.host_kv_bytes, touch=True)
        self._images: dict[ImageId, Memory] = {}
        self._ledger = ledger
        self._clock = clock
        self._post = post
        self._host = host
        self._interrupted = Event()
        self._closing = Event()
        self._channels = {
            channel: ChannelThread(channel.name.lower().replace("_", "-"), post.broken) for channel in Channel
        }

    def start(self, started: Started) -> None:
        match started.operation:
            case Step():
                self._interrupted.clear()
                job = self._host.prepare_step(started)
                self._submit(started, lambda: job.run(started.id, self._interrupted, self._post))
            case Fetch():
                for dropped in started.dropped:
                    self._images.pop(dropped).close()
                self._submit(started, lambda: self._fetch(started))
            case Activate():
                self._submit_copy(started, [self._image_span(image) for image in started.images])
            case PageIn():
                transfers = [t for _, blocks in started.transfers for t in blocks]
                self._submit_copy(started, self._block_spans(transfers, into_device=True))
            case PageOut():
                transfers = [t for _, blocks in started.transfers for t in blocks]
                self._submit_copy(started, self._block_spans(transfers, into_device=False))
            case Compact():
                base = self.arena.address
                self._submit_copy(
                    started, [(base + m.target, base + m.source, m.n_bytes) for m in started.moves]
                )

    def interrupt(self) -> None:
        self._interrupted.set()

    def image_address(self, image: ImageId) -> int:
        """Where the host cache keeps an image."""
        return self._images[image].address

    def close(self) -> None:
        self._closing.set()
        self._interrupted.set()
        for channel in self._channels.values():
            channel.close()
        for memory in (self.arena, self._host_kv, *self._images.values()):
            memory.close()

    def _submit(self, started: Started, job: Callable[[], None]) -> None:
        self._channels[started.channel].submit(started.id, job)

    def _submit_copy(self, started: Started, spans: Iterable[Span]) -> None:
        spans = list(spans)

        def job() -> None:
            report = self._reporter(started)
            for target, source, n_bytes in spans:
                for offset in range(0, n_bytes, COPY_CHUNK_BYTES):
                    if self._closing.is_set():
                        return
                    n = min(COPY_CHUNK_BYTES, n_bytes - offset)
                    ctypes.memmove(target + offset, source + offset, n)
                    report(n)
            self._post.done(CopyDone(self._clock.now_s(), started.id))

        self._submit(started, job)

    def _reporter(self, started: Started) -> Callable[[int], None]:
        """Counts bytes done, and posts progress when some time has passed since the last."""
        done = 0
        told_s = self._clock.now_s()

        def report(n_bytes: int) -> None:
            nonlocal done, told_s
            done += n_bytes
            now_s = self._clock.now_s()
            if now_s >= told_s + PROGRESS_INTERVAL_S:
                told_s = now_s
                self._post.progress(started.id, done / started.n_bytes)

        return report

    def _fetch(self, started: Started) -> None:
        read: dict[ImageId, Memory] = {}
        error = ""
        report = self._reporter(started)
        try:
            for image in started.images:
                read[image.id] = Memory(image.n_bytes, touch=False)
                self._host.read_image(image, memoryview(read[image.id].buffer)[: image.n_bytes], report)
        except TokenmuxError as problem:
            error = str(problem)
            for memory in read.values():
                memory.close()
        else:
            self._images.update(read)
        self._post.done(CopyDone(self._clock.now_s(), started.id, error))

    def _image_span(self, image: Image) -> Span:
        offset = self._ledger.arena.offset(self._ledger.extent(image.id))
        return self.arena.address + offset, self.image_address(image.id), image.n_bytes

    def _block_spans(self, transfers: list[Transfer], into_device: bool) -> list[Span]:
        """One span per run of blocks that are neighbours on both sides."""
        spans: list[Span] = []
        for transfer in transfers:
            size = transfer.shape.block_bytes
            device = self.arena.address + _address(self._ledger.blocks, transfer.device, size)
            host = self._host_kv.address + _address(self._ledger.host_blocks, transfer.host, size)
            target, source = (device, host) if into_device else (host, device)
            if spans and (spans[-1][0] + spans[-1][2], spans[-1][1] + spans[-1][2]) == (target, source):
                spans[-1] = (*spans[-1][:2], spans[-1][2] + size)
            else:
                spans.append((target, source, size))
        return spans


def _address(pool: SlabPool, handle: BlockHandle, block_bytes: int) -> int:
    return pool.block_index(handle) * block_bytes
