"""Fetches: images read from disk into memory of the node, by a reader that cannot be held up for ever."""

from collections.abc import Callable
from threading import Event
from typing import Generic

from tokenmux.core.clock import Clock
from tokenmux.core.errors import TokenmuxError
from tokenmux.core.facts import Image
from tokenmux.device.device_protocol import Host, Post
from tokenmux.device.images import MappedImage, MappedImages, Memory_
from tokenmux.device.memory import SharedMemory
from tokenmux.device.operation_progress import SupersededError, failed_copy, progress_of, until_stopped
from tokenmux.device.reader import Reader, ToldBytes
from tokenmux.messages.completions import CopyCompleted
from tokenmux.messages.launches import FetchLaunch
from tokenmux.processes.available_memory import check_available


class Fetcher(Generic[Memory_]):
    """Carries out the fetches of one device."""

    def __init__(
        self,
        images: MappedImages[Memory_],
        host: Host,
        clock: Clock,
        post: Post,
        make_usable: Callable[[SharedMemory], Memory_],
    ) -> None:
        self._images = images
        self._host = host
        self._clock = clock
        self._post = post
        self._make_usable = make_usable
        self._reader = Reader(clock)

    def prepare(self, launch: FetchLaunch, stop: Event) -> Callable[[], CopyCompleted]:
        """What the fetch channel's thread has to do. Raises GivenUpError there if the device closes."""
        held = [(image, self._images.hold(self._images[image.id])) for image in launch.images]
        n_bytes = sum(image.n_bytes for image in launch.images)

        def read(told: ToldBytes) -> None:
            for image, into in held:
                self._fill(launch, image, into, told)

        def release() -> None:
            for _, into in held:
                self._images.let_go(into)

        def fetch() -> CopyCompleted:
            report = until_stopped(progress_of(launch.operation, n_bytes, self._clock, self._post), stop)
            try:
                self._reader.read(launch.images, read, release, report)
            except (TokenmuxError, SupersededError) as problem:
                return failed_copy(launch.operation, self._clock.now_s(), problem)
            return CopyCompleted(launch.operation, self._clock.now_s())

        return fetch

    def close(self) -> None:
        """Stop waiting for any read."""
        self._reader.close()

    def _fill(
        self, launch: FetchLaunch, image: Image, into: MappedImage[Memory_], told: Callable[[int], None]
    ) -> None:
        def fill(memory: SharedMemory) -> Memory_:
            self._host.read_image(launch.model, image, memory.view(), told)
            return self._make_usable(memory)

        check_available(image.n_bytes)
        into.fill(fill)
