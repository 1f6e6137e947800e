"""The host cache: the weight images in host memory, within a byte budget, evicted least recently used first.

There is one per host, shared by its instances. Every entry is backed by an image file, so dropping one costs
only a later read. The bytes themselves belong to `tokenmux.device`.
"""

from tokenmux.core.errors import IntegrityError
from tokenmux.core.facts import Image, ImageId


class HostCache:
    """The books of the cache. An image is absent, being fetched, or cached; while a copy reads it, it is
    held.

    >>> cache = HostCache(capacity=1000)
    >>> for name in ("old", "new"):
    ...     to_read, dropped = cache.begin_fetch((Image(ImageId(name), 600),))
    ...     cache.end_fetch(to_read, ok=True)
    >>> dropped, cache.has(ImageId("new"))
    (('old',), True)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used_bytes = 0
        self.version = 0
        """Changes whenever an image is added or dropped."""
        self._cached: dict[ImageId, Image] = {}
        self._fetching: dict[ImageId, Image] = {}
        self._holds: dict[ImageId, int] = {}

    @property
    def cached(self) -> tuple[ImageId, ...]:
        """Images in memory, least recently used first."""
        return tuple(self._cached)

    @property
    def fetching(self) -> tuple[ImageId, ...]:
        """Images that are being read from disk."""
        return tuple(self._fetching)

    @property
    def held(self) -> dict[ImageId, int]:
        """How many copies read each image now; images that none reads are left out."""
        return dict(self._holds)

    def has(self, image: ImageId) -> bool:
        return image in self._cached

    def is_fetching(self, image: ImageId) -> bool:
        return image in self._fetching

    def touch(self, image: ImageId) -> None:
        """Mark the image as most recently used."""
        self._cached[image] = self._cached.pop(image)

    def hold(self, image: ImageId) -> None:
        """Keep the image until `unhold`, because a copy reads it."""
        self.touch(image)
        self._holds[image] = self._holds.get(image, 0) + 1

    def unhold(self, image: ImageId) -> None:
        self._holds[image] -= 1
        if not self._holds[image]:
            del self._holds[image]

    def can_fetch(self, images: tuple[Image, ...]) -> bool:
        """True if room could be made for those of these images that are absent."""
        wanted = {image.id for image in images}
        need = sum(image.n_bytes for image in images if not self._known(image.id))
        unmovable = sum(i.n_bytes for i in self._fetching.values())
        unmovable += sum(i.n_bytes for i in self._cached.values() if i.id in wanted or i.id in self._holds)
        return unmovable + need <= self.capacity

    def begin_fetch(self, images: tuple[Image, ...]) -> tuple[tuple[Image, ...], tuple[ImageId, ...]]:
        """Reserve room for the absent images: returns (to read, dropped). Ask `can_fetch` first.

        Raises IntegrityError, and drops nothing, if there cannot be enough room.
        """
        self.version += 1
        if not self.can_fetch(images):
            raise IntegrityError("host cache: fetch begun without room for it")
        wanted = {image.id for image in images}
        absent = tuple(image for image in images if not self._known(image.id))
        need = sum(image.n_bytes for image in absent)
        dropped = []
        for victim in list(self._cached.values()):
            if self.used_bytes + need <= self.capacity:
                break
            if victim.id not in wanted and victim.id not in self._holds:
                self.drop(victim.id)
                dropped.append(victim.id)
        for image in absent:
            self._fetching[image.id] = image
        self.used_bytes += need
        return absent, tuple(dropped)

    def end_fetch(self, images: tuple[Image, ...], ok: bool) -> None:
        """Record that reading these images ended, successfully (`ok`) or not."""
        self.version += 1
        for image in images:
            del self._fetching[image.id]
            if ok:
                self._cached[image.id] = image
            else:
                self.used_bytes -= image.n_bytes

    def drop(self, image: ImageId) -> None:
        self.version += 1
        if image in self._holds:
            raise IntegrityError(f"host cache: {image} is dropped while a copy reads it")
        self.used_bytes -= self._cached.pop(image).n_bytes

    def check_integrity(self) -> None:
        everything = [*self._cached.values(), *self._fetching.values()]
        if self.used_bytes != sum(image.n_bytes for image in everything) or self.used_bytes > self.capacity:
            raise IntegrityError("host cache: used_bytes is wrong or over the budget")
        if self._holds.keys() - self._cached.keys():
            raise IntegrityError("host cache: something held is not cached")

    def _known(self, image: ImageId) -> bool:
        return image in self._cached or image in self._fetching
