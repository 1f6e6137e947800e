"""The host memory of a node: weight images, and paged-out KV.

It is shared memory that executors map. The node keeps descriptors and maps nothing: the bytes are written and
read by executors. Which images there are is for the host cache to say; this follows.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenmux.core.facts import Image, ImageId, InstanceId
from tokenmux.processes import shared_memory


@dataclass(slots=True)
class HostImage:
    """The memory of one image. `mapped_by` are the devices that have been given it."""

    descriptor: int
    n_bytes: int
    fetcher: InstanceId | None
    """The device whose executor fills it; None once it is filled."""
    mapped_by: set[InstanceId] = field(default_factory=set)


class HostMemory:
    """Descriptors of images and of the memory for KV. `close` gives everything up."""

    def __init__(self, host_kv_bytes: int) -> None:
        """Raises DoesNotFit if the system does not have `host_kv_bytes`."""
        self.images: dict[ImageId, HostImage] = {}
        self.host_kv = self._create("paged-out-kv", host_kv_bytes, allocated=True)

    def begin_fetch(self, image: Image, fetcher: InstanceId) -> HostImage:
        """Memory for an image that an executor is about to read. Raises DoesNotFit."""
        descriptor = self._create(f"image-{image.id}", image.n_bytes)
        host_image = HostImage(descriptor, image.n_bytes, fetcher, {fetcher})
        self.images[image.id] = host_image
        return host_image

    def end_fetch(self, image: ImageId) -> None:
        """The image is filled, and others may map it."""
        self.images[image].fetcher = None

    def filled(self) -> Iterator[tuple[ImageId, HostImage]]:
        """The images that can be mapped, the oldest first."""
        return ((id, image) for id, image in self.images.items() if image.fetcher is None)

    def drop(self, image: ImageId) -> set[InstanceId]:
        """Give an image up. Returns the devices that have to unmap it."""
        dropped = self.images.pop(image, None)
        if dropped is None:
            return set()
        self._release(dropped.descriptor)
        return dropped.mapped_by

    def unmap(self, image: ImageId) -> set[InstanceId]:
        """Take a filled image from all devices, and keep it. Returns those that have to unmap it."""
        kept = self.images.get(image)
        if kept is None or kept.fetcher is not None:
            return set()
        mapped_by, kept.mapped_by = kept.mapped_by, set()
        return mapped_by

    def forget_device(self, device: InstanceId) -> None:
        """The executor of a device is gone: it maps nothing, and what it was filling is lost."""
        for image_id, image in list(self.images.items()):
            image.mapped_by.discard(device)
            if image.fetcher == device:
                self.drop(image_id)

    def close(self) -> None:
        for image in list(self.images):
            self.drop(image)
        self._release(self.host_kv)

    # a double without memory replaces these two (`tokenmux.testing.virtual_node`)
    def _create(self, name: str, n_bytes: int, *, allocated: bool = False) -> int:
        descriptor = shared_memory.create_shared(name, n_bytes)
        if allocated:
            try:
                shared_memory.allocate(descriptor, n_bytes)
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    def _release(self, descriptor: int) -> None:
        os.close(descriptor)
