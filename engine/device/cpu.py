"""The virtual GPU: an arena of host memory, copies on their own threads, steps on real weights.

The arena is one allocation of the budget, touched once so that no copy ever meets a page fault. Weights come
from images that the node owns, and KV goes to and from its memory for paged-out blocks. Copies are plain
`memmove`s of at most `COPY_CHUNK_BYTES`, with the interpreter lock released, so that they overlap with steps
as far as the machine's memory bandwidth allows.
"""

import ctypes
from collections.abc import Callable, Sequence
from threading import Event

from tokenmux.core.clock import Clock
from tokenmux.core.errors import DoesNotFit, TokenmuxError
from tokenmux.core.facts import DeviceFacts, ImageId
from tokenmux.core.plan import Channel
from tokenmux.core.sizes import show_size
from tokenmux.device.channel import CHANNEL_CLOSE_S, ChannelThread
from tokenmux.device.device_protocol import Host, Post, channel_of
from tokenmux.device.fetching import Fetcher
from tokenmux.device.images import MappedImages, wait_until_usable
from tokenmux.device.memory import Memory, SharedMemory
from tokenmux.device.operation_progress import SupersededError, failed_copy, progress_of
from tokenmux.device.reader import GivenUpError
from tokenmux.device.spans import paging_spans
from tokenmux.device.stops import Stops
from tokenmux.messages.completions import CopyCompleted
from tokenmux.messages.launches import (
    FetchLaunch,
    Launch,
    MoveLaunch,
    OperationId,
    PagingLaunch,
    StepLaunch,
    WeightsLaunch,
)
from tokenmux.processes.available_memory import check_available

COPY_CHUNK_BYTES = 16 << 20
"""Between chunks other threads can take the interpreter lock, and the closing of the device is noticed.
Larger chunks were no faster."""

_Copying = WeightsLaunch | PagingLaunch | MoveLaunch

CopySpan = tuple[int, int, int]
"""(target address, source address, bytes)"""


class CpuDevice:
    """Four threads, one per channel, over one arena, and one for images that others have fetched."""

    def __init__(
        self, facts: DeviceFacts, host_kv: SharedMemory, clock: Clock, post: Post, host: Host
    ) -> None:
        self.arena = Memory(facts.arena_bytes, touch=True)
        self._host_kv = host_kv
        self._clock = clock
        self._post = post
        self._host = host
        self._stops = Stops()
        self._closing = Event()
        self._images: MappedImages[SharedMemory] = MappedImages(self._adopt, clock, post.broken)
        self._fetcher = Fetcher(self._images, host, clock, post, lambda memory: memory)
        self._channels = {
            channel: ChannelThread(channel.name.lower().replace("_", "-"), post.broken) for channel in Channel
        }
        host.attach(self.arena.as_tensor())

    def start(self, launch: Launch) -> None:
        stop = self._stops.begin(launch.operation)
        match launch:
            case StepLaunch():
                step = self._host.prepare_step(launch)
                self._submit(launch, lambda: step.run(stop, self._post, _settled))
            case FetchLaunch():
                fetch = self._fetcher.prepare(launch, stop)
                self._submit(launch, lambda: self._fetch(fetch))
            case WeightsLaunch():
                self._submit_weights(launch, stop)
            case PagingLaunch():
                self._submit_copy(launch, stop, self._block_spans(launch))
            case MoveLaunch(moves=moves):
                base = self.arena.address
                spans = [(base + move.target, base + move.source, move.n_bytes) for move in moves]
                self._submit_copy(launch, stop, spans)

    def stop_step(self, operation: OperationId) -> None:
        self._stops.ask(operation)

    def stop_copy(self, operation: OperationId) -> None:
        self._stops.ask(operation)

    def map_image(self, image: ImageId, n_bytes: int, descriptor: int, *, filled: bool) -> None:
        self._images.map(image, n_bytes, descriptor, filled=filled)

    def unmap_image(self, image: ImageId) -> None:
        self._images.unmap(image)

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
        """Address of an image in host memory."""
        return self._images[image].memory.address

    def close(self) -> None:
        self._closing.set()
        self._stops.ask_all()
        self._fetcher.close()
        ended = [channel.close(CHANNEL_CLOSE_S) for channel in self._channels.values()]
        if not all(ended):
            return  # what hangs may still use its memory; both end with the process
        self._images.close()
        self.arena.close()

    def _submit(self, launch: Launch, job: Callable[[], None]) -> None:
        def run() -> None:
            try:
                job()
            finally:
                self._stops.end(launch.operation)

        self._channels[channel_of(launch)].submit(launch.operation, run)

    def _submit_copy(self, launch: _Copying, stop: Event, spans: Sequence[CopySpan]) -> None:
        self._submit(launch, lambda: self._copy(launch, stop, spans))

    def _submit_weights(self, launch: WeightsLaunch, stop: Event) -> None:
        held = [(placed, self._images.hold_for_copy(placed.image)) for placed in launch.images]

        def job() -> None:
            try:
                for _, image in held:
                    wait_until_usable(image, stop)
            except (TokenmuxError, SupersededError) as problem:
                self._post.tell(failed_copy(launch.operation, self._clock.now_s(), problem))
            else:
                base = self.arena.address
                spans = [(base + place.offset, image.memory.address, place.n_bytes) for place, image in held]
                self._copy(launch, stop, spans)
            finally:
                for _, image in held:
                    self._images.let_go(image)

        self._submit(launch, job)

    def _copy(self, launch: _Copying, stop: Event, spans: Sequence[CopySpan]) -> None:
        report = progress_of(launch.operation, sum(span[2] for span in spans), self._clock, self._post)
        for target, source, n_bytes in spans:
            for offset in range(0, n_bytes, COPY_CHUNK_BYTES):
                if self._closing.is_set():
                    return
                if stop.is_set():
                    stopped = failed_copy(launch.operation, self._clock.now_s(), SupersededError())
                    self._post.tell(stopped)
                    return
                n = min(COPY_CHUNK_BYTES, n_bytes - offset)
                ctypes.memmove(target + offset, source + offset, n)
                report(n)
        self._post.tell(CopyCompleted(launch.operation, self._clock.now_s()))

    def _fetch(self, fetch: Callable[[], CopyCompleted]) -> None:
        try:
            completed = fetch()
        except GivenUpError:
            return
        self._post.tell(completed)

    def _adopt(self, image: ImageId, memory: SharedMemory, opened: Callable[[], None]) -> SharedMemory:
        self._host.adopt_image(image, memory.view(), opened)
        return memory

    def _block_spans(self, launch: PagingLaunch) -> list[CopySpan]:
        spans = [
            (self.arena.address + span.device, self._host_kv.address + span.host, span.n_bytes)
            for blocks in launch.requests
            for span in paging_spans(blocks, self._host.kv_shape(blocks.model).block_bytes)
        ]
        if launch.into_device:
            return spans
        return [(host, device, n_bytes) for device, host, n_bytes in spans]


def _arena(n_bytes: int) -> Memory:
    """Memory for an arena. Raises DoesNotFit instead of taking so much that the system would kill a
    process."""
    check_available(n_bytes)
    try:
        return Memory(n_bytes, touch=True)
    except (OSError, OverflowError) as error:
        raise DoesNotFit(
            f"{show_size(n_bytes)} of memory cannot be allocated on this machine ({error}): ask for less, "
            "or stop other programs here"
        ) from None


def _settled() -> None:
    """Do nothing: a processor has finished its work when the call returns."""
