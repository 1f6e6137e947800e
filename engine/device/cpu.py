"""The virtual GPU: an arena of host memory, copies on their own threads, steps on real weights.

The arena is one allocation of the budget, touched once so that no copy ever meets a page fault. Weights come
from the host cache's buffers; KV goes to and from a second arena for paged-out blocks. Copies are plain
`memmove`s of at most `COPY_CHUNK_BYTES`, with the interpreter lock released, so that they overlap with steps
as far as the machine's memory bandwidth allows.
"""

import ctypes
from collections.abc import Callable, Iterable
from threading import Event

from tokenmux.core.clock import Clock
from tokenmux.core.errors import DoesNotFit, TokenmuxError
from tokenmux.core.event import SUPERSEDED, CopyDone
from tokenmux.core.facts import DeviceFacts, Image, ImageId
from tokenmux.core.plan import Channel
from tokenmux.core.sizes import show_size
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedCopy,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedPaging,
    StartedStep,
)
from tokenmux.device.channel import CHANNEL_CLOSE_S, ChannelThread
from tokenmux.device.device_protocol import Host, Post
from tokenmux.device.memory import Memory, available_bytes
from tokenmux.device.operation_progress import SupersededError, progress_of, until_superseded
from tokenmux.device.reader import GivenUpError, Reader
from tokenmux.device.spans import paging_spans
from tokenmux.scheduler.memory.ledger import Ledger

COPY_CHUNK_BYTES = 16 << 20
"""Between chunks other threads can take the interpreter lock, and the closing of the device is noticed.
Larger chunks were no faster."""

CopySpan = tuple[int, int, int]
"""(target address, source address, bytes)"""


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
        self._superseded: set[int] = set()
        self._closing = Event()
        self._reader = Reader(clock)
        self._channels = {
            channel: ChannelThread(channel.name.lower().replace("_", "-"), post.broken) for channel in Channel
        }
        host.attach(self.arena.as_tensor())

    def start(self, started: Started) -> None:
        match started:
            case StartedStep():
                self._interrupted.clear()
                job = self._host.prepare_step(started)
                self._submit(started, lambda: job.run(started.id, self._interrupted, self._post, _settled))
            case StartedFetch():
                for dropped in started.dropped:
                    self._images.pop(dropped).close()
                self._submit(started, lambda: self._fetch(started))
            case StartedActivation():
                self._submit_copy(started, [self._image_span(image) for image in started.images])
            case StartedPageIn() | StartedPageOut():
                self._submit_copy(started, self._block_spans(started))
            case StartedCompaction():
                base = self.arena.address
                self._submit_copy(
                    started, [(base + m.target, base + m.source, m.n_bytes) for m in started.moves]
                )

    def interrupt(self) -> None:
        self._interrupted.set()

    def supersede(self, operation: int) -> None:
        self._superseded.add(operation)

    def resize(self, arena_bytes: int) -> None:
        before = len(self.arena.buffer)
        self._host.detach()
        self.arena.close()
        try:
            self.arena = _arena(arena_bytes)
        except DoesNotFit:
            self.arena = Memory(before, touch=True)
            raise
        finally:
            self._host.attach(self.arena.as_tensor())

    def image_address(self, image: ImageId) -> int:
        """Address of an image in the host cache."""
        return self._images[image].address

    def close(self) -> None:
        self._closing.set()
        self._interrupted.set()
        self._reader.close()
        ended = [channel.close(CHANNEL_CLOSE_S) for channel in self._channels.values()]
        if not all(ended):
            return  # what hangs may still use its memory; both end with the process
        for memory in (self.arena, self._host_kv, *self._images.values()):
            memory.close()

    def _submit(self, started: Started, job: Callable[[], None]) -> None:
        self._channels[started.channel].submit(started.id, job)

    def _submit_copy(self, started: StartedCopy, spans: Iterable[CopySpan]) -> None:
        spans = list(spans)

        def job() -> None:
            report = progress_of(started, self._clock, self._post)
            for target, source, n_bytes in spans:
                for offset in range(0, n_bytes, COPY_CHUNK_BYTES):
                    if self._closing.is_set():
                        return
                    if started.id in self._superseded:
                        self._superseded.remove(started.id)
                        self._post.done(CopyDone(self._clock.now_s(), started.id, SUPERSEDED))
                        return
                    n = min(COPY_CHUNK_BYTES, n_bytes - offset)
                    ctypes.memmove(target + offset, source + offset, n)
                    report(n)
            self._post.done(CopyDone(self._clock.now_s(), started.id))

        self._submit(started, job)

    def _fetch(self, started: StartedFetch) -> None:
        read: dict[ImageId, Memory] = {}
        error = ""
        report = until_superseded(progress_of(started, self._clock, self._post), started.id, self._superseded)

        def job(told: Callable[[int], None]) -> None:
            for image in started.images:
                read[image.id] = Memory(image.n_bytes, touch=False)
                self._host.read_image(image, memoryview(read[image.id].buffer)[: image.n_bytes], told)

        def discard() -> None:
            for memory in read.values():
                memory.close()

        try:
            self._reader.read(started.images, job, discard, report)
        except GivenUpError:
            return
        except (TokenmuxError, SupersededError) as problem:
            error = str(problem)
        else:
            self._images.update(read)
        self._superseded.discard(started.id)
        self._post.done(CopyDone(self._clock.now_s(), started.id, error))

    def _image_span(self, image: Image) -> CopySpan:
        offset = self._ledger.arena.offset(self._ledger.extent(image.id))
        return self.arena.address + offset, self.image_address(image.id), image.n_bytes

    def _block_spans(self, started: StartedPaging) -> list[CopySpan]:
        transfers = (transfer for paged in started.paged for transfer in paged.transfers)
        spans = [
            (self.arena.address + span.device, self._host_kv.address + span.host, span.n_bytes)
            for span in paging_spans(self._ledger, transfers)
        ]
        if isinstance(started, StartedPageIn):
            return spans
        return [(host, device, n_bytes) for device, host, n_bytes in spans]


def _arena(n_bytes: int) -> Memory:
    """Memory for an arena. Raises DoesNotFit instead of taking so much that the system would kill a
    process."""
    available = available_bytes()
    try:
        if available is not None and n_bytes > available:
            raise OSError(f"{show_size(available)} are available")
        return Memory(n_bytes, touch=True)
    except (OSError, OverflowError) as error:
        raise DoesNotFit(
            f"{show_size(n_bytes)} of memory cannot be allocated on this machine ({error}): ask for less, "
            "or stop other programs here"
        ) from None


def _settled() -> None:
    """Do nothing: a processor has finished its work when the call returns."""
