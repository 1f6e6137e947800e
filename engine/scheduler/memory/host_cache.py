"""The host cache: the weight images in host memory, within a byte budget, evicted least recently used first.

There is one per host, shared by its instances. Every entry is backed by an image file, so dropping one costs
only a later read. The bytes themselves belong to `tokenmux.device`.

Each instance can claim what its most urgent absent model needs. Fetches that are due later, by whichever
instance, do not drop what is claimed, and after a while they leave room for what is claimed but absent.
Otherwise a large model would be kept out for ever where small ones come and go, or dropped before it can be
copied.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import inf

from tokenmux.core.errors import IntegrityError
from tokenmux.core.facts import Image, ImageId


@dataclass(frozen=True, slots=True)
class CacheClaim:
    """An instance's wish for the images of one model."""

    images: tuple[Image, ...]
    due_s: Callable[[], float]
    """When they are due: infinity once no request waits for them."""
    margin_s: float
    """A fetch leaves room for them if it is due later by more than this."""


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
        self._claims: dict[Hashable, CacheClaim] = {}

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
        return self._fits_beside(images, 0)

    def claim(self, owner: Hashable, claim: CacheClaim) -> None:
        """Record the claim of `owner`, in place of an earlier one."""
        self._claims[owner] = claim

    def withdraw(self, owner: Hashable) -> None:
        self._claims.pop(owner, None)

    def respects_claims(self, images: tuple[Image, ...], due_s: float) -> bool:
        """True if a fetch of these images, due at `due_s`, takes nothing from claims that are due earlier."""
        first_s, reserved = inf, 0
        dropped: tuple[ImageId, ...] | None = None
        for claim in self._claims.values():
            claim_s = claim.due_s()
            if claim_s >= due_s:
                continue
            need = self._need(claim.images)
            if not need:
                dropped = self.would_drop(images) if dropped is None else dropped
                if any(image.id in dropped for image in claim.images):
                    return False
            elif claim_s < first_s and claim_s + claim.margin_s < due_s and need <= self.capacity:
                first_s, reserved = claim_s, need
        return self._fits_beside(images, reserved)

    def would_drop(self, images: tuple[Image, ...]) -> tuple[ImageId, ...]:
        """What fetching these images would drop, if it can begin."""
        wanted = {image.id for image in images}
        excess = self.used_bytes + self._need(images) - self.capacity
        dropped: list[ImageId] = []
        for victim in self._cached.values():
            if excess <= 0:
                break
            if victim.id not in wanted and victim.id not in self._holds:
                dropped.append(victim.id)
                excess -= victim.n_bytes
        return tuple(dropped)

    def begin_fetch(self, images: tuple[Image, ...]) -> tuple[tuple[Image, ...], tuple[ImageId, ...]]:
        """Reserve room for the absent images: returns (to read, dropped). Ask `can_fetch` first.

        Raises IntegrityError, and drops nothing, if there cannot be enough room.
        """
        self.version += 1
        if not self.can_fetch(images):
            raise IntegrityError("host cache: fetch begun without room for it")
        absent = tuple(image for image in images if not self._known(image.id))
        dropped = self.would_drop(images)
        for victim in dropped:
            self.drop(victim)
        self.used_bytes += self._need(absent)
        for image in absent:
            self._fetching[image.id] = image
        return absent, dropped

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

    def _need(self, images: tuple[Image, ...]) -> int:
        """Bytes of those of these images that are absent."""
        return sum(image.n_bytes for image in images if not self._known(image.id))

    def _fits_beside(self, images: tuple[Image, ...], n_bytes: int) -> bool:
        """True if room could be made for these images and for `n_bytes` more."""
        wanted = {image.id for image in images}
        unmovable = sum(i.n_bytes for i in self._fetching.values())
        unmovable += sum(i.n_bytes for i in self._cached.values() if i.id in wanted or i.id in self._holds)
        return unmovable + self._need(images) + n_bytes <= self.capacity

    def _known(self, image: ImageId) -> bool:
        return image in self._cached or image in self._fetching
