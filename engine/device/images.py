"""The images of weights in host memory that this executor maps. The node owns the memory.

    filled here          the fetch channel's reader maps the memory, reads the file into it, arranges it
    filled elsewhere     a thread of its own maps it and gets its models ready, beside steps and copies; it
                         reads small files of the model, and does not wait for ever for those either

A copy waits until its image is usable. An image that was given up is unmapped when its last user lets go.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Event, Lock, Thread
from typing import Generic, Protocol, TypeVar

from tokenmux.core.clock import Clock
from tokenmux.core.errors import InternalError, TokenmuxError
from tokenmux.core.facts import Image, ImageId
from tokenmux.device.memory import SharedMemory
from tokenmux.device.operation_progress import SupersededError
from tokenmux.device.reader import GivenUpError, Reader, ToldBytes

_LOOK_S = 0.05
"""How often a copy that waits for an image looks whether it was stopped."""


class Closable(Protocol):
    def close(self) -> None: ...


Memory_ = TypeVar("Memory_", bound=Closable)


class MappedImage(Generic[Memory_]):
    """One image. `memory` is there once it is `settled` without an `error`."""

    def __init__(self, id: ImageId, n_bytes: int, descriptor: int) -> None:
        self.id = id
        self.n_bytes = n_bytes
        self.descriptor = descriptor
        self.n_users = 1
        """Launches that use it, and one until it is given up."""
        self.settled = Event()
        self.error: TokenmuxError | None = None
        self._memory: Memory_ | None = None

    @property
    def memory(self) -> Memory_:
        if self._memory is None:
            raise InternalError(f"image {self.id} was used before it was fetched")
        return self._memory

    def fill(self, fill: Callable[[SharedMemory], Memory_]) -> None:
        """Map it, and let `fill` make it usable. Raises TokenmuxError if it cannot be used."""
        try:
            self._memory = fill(SharedMemory(self.descriptor, self.n_bytes))
        except TokenmuxError as error:
            self.fail(error)
            raise
        finally:
            self._close_descriptor()
            self.settled.set()

    def fail(self, error: TokenmuxError) -> None:
        """Say that it cannot be used, and why."""
        self.error = error
        self.settled.set()

    def close(self) -> None:
        self._close_descriptor()
        if self._memory is not None:
            self._memory.close()
        self._memory = None

    def _close_descriptor(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


Adopt = Callable[[ImageId, SharedMemory, Callable[[], None]], Memory_]
"""Makes an image usable that is filled already; calls the function once the files of its models are open."""


class MappedImages(Generic[Memory_]):
    """The images of one device; see the module. `broken` is told of errors that no image is to blame for."""

    def __init__(
        self, adopt: Adopt[Memory_], clock: Clock, broken: Callable[[int, BaseException], None]
    ) -> None:
        self._adopt = adopt
        self._images: dict[ImageId, MappedImage[Memory_]] = {}
        self._lock = Lock()
        self._reader = Reader(clock)
        self._thread = _ImageThread(broken)

    def map(self, id: ImageId, n_bytes: int, descriptor: int, *, filled: bool) -> None:
        image: MappedImage[Memory_] = MappedImage(id, n_bytes, descriptor)
        self._images[id] = image
        if filled:
            self.hold(image)
            self._thread.submit(id, lambda: self._make_usable(image))

    def unmap(self, id: ImageId) -> None:
        self.let_go(self._images.pop(id))

    def __getitem__(self, id: ImageId) -> MappedImage[Memory_]:
        return self._images[id]

    def values(self) -> Sequence[MappedImage[Memory_]]:
        return list(self._images.values())

    def hold(self, image: MappedImage[Memory_]) -> MappedImage[Memory_]:
        """Keep it mapped until `let_go`."""
        with self._lock:
            image.n_users += 1
        return image

    def let_go(self, image: MappedImage[Memory_]) -> None:
        with self._lock:
            image.n_users -= 1
            if image.n_users:
                return
        self._thread.submit(image.id, image.close)

    def hold_for_copy(self, id: ImageId) -> MappedImage[Memory_]:
        """`hold` an image that is about to be copied: it is made usable before others that wait."""
        image = self._images[id]
        if not image.settled.is_set():
            self._thread.hurry(id)
        return self.hold(image)

    def close(self) -> None:
        """Unmap everything. No copy is in flight."""
        self._reader.close()
        self._thread.close()
        for image in self._images.values():
            image.close()
        self._images.clear()

    def _make_usable(self, image: MappedImage[Memory_]) -> None:
        """On the thread of images."""

        def job(told: ToldBytes) -> None:
            opened = lambda: told(image.n_bytes)
            image.fill(lambda memory: self._adopt(image.id, memory, opened))

        with self._lock:
            is_given_up = image.n_users == 1
        if is_given_up:
            self.let_go(image)
            return
        try:
            images = (Image(image.id, image.n_bytes),)
            self._reader.read(images, job, lambda: self.let_go(image), lambda _: None)
        except TokenmuxError as error:
            image.fail(error)  # the copy that needs it reports it
        except GivenUpError:
            pass  # the device closes


def wait_until_usable(image: MappedImage[Memory_], stop: Event) -> None:
    """Return when the image can be copied. Raises what made it unusable, SupersededError if `stop` is set."""
    while not image.settled.wait(_LOOK_S):
        if stop.is_set():
            raise SupersededError
    if image.error is not None:
        raise image.error


class _ImageThread:
    """Runs jobs in order, except that the first job of an image can be hurried to the front."""

    def __init__(self, broken: Callable[[int, BaseException], None]) -> None:
        self._jobs: deque[tuple[ImageId, Callable[[], None]]] = deque()
        self._changed = Condition()
        self._closing = False
        self._broken = broken
        self._thread = Thread(target=self._run, name="tokenmux-images", daemon=True)
        self._thread.start()

    def submit(self, id: ImageId, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.append((id, job))
            self._changed.notify()

    def hurry(self, id: ImageId) -> None:
        with self._changed:
            for item in self._jobs:
                if item[0] == id:
                    self._jobs.remove(item)
                    self._jobs.appendleft(item)
                    return

    def close(self, timeout_s: float = 1.0) -> None:
        """End after the present job."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if self._closing:
                    return
                _, job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the executor must hear of it
                self._broken(0, error)
            del job
