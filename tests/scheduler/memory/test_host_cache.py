"""The host cache against a plain list in order of use: the budget holds, the oldest go first, what is read
stays."""

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmux.core.errors import IntegrityError
from tokenmux.core.facts import Image, ImageId
from tokenmux.scheduler.memory.host_cache import CacheClaim, HostCache

IMAGES = tuple(
    Image(ImageId(name), n_bytes) for name, n_bytes in zip("abcdef", (2, 2, 3, 3, 4, 6), strict=True)
)
SIZE = {image.id: image.n_bytes for image in IMAGES}

some_images = st.lists(st.sampled_from(IMAGES), min_size=1, max_size=2, unique=True).map(tuple)


class HostCacheMachine(RuleBasedStateMachine):
    """`order` is the cached images, least recently used first; `held` has one entry for every hold."""

    @initialize(capacity=st.integers(5, 14))
    def create(self, capacity: int) -> None:
        self.cache = HostCache(capacity)
        self.order: list[ImageId] = []
        self.held: list[ImageId] = []
        self.fetches: list[tuple[Image, ...]] = []

    @property
    def fetching(self) -> set[ImageId]:
        return {image.id for images in self.fetches for image in images}

    @rule(images=some_images)
    def begin_fetch(self, images: tuple[Image, ...]) -> None:
        wanted = {image.id for image in images}
        absent = tuple(i for i in images if i.id not in self.order and i.id not in self.fetching)
        droppable = [i for i in self.order if i not in wanted and i not in self.held]
        needed = sum(SIZE[i] for i in self.fetching | set(self.order)) + sum(i.n_bytes for i in absent)
        possible = needed - sum(SIZE[i] for i in droppable) <= self.cache.capacity
        assert self.cache.can_fetch(images) == possible
        if not possible:
            with pytest.raises(IntegrityError, match="without room"):
                self.cache.begin_fetch(images)
            return
        expected: list[ImageId] = []
        while needed > self.cache.capacity:
            expected.append(droppable.pop(0))
            needed -= SIZE[expected[-1]]
        assert self.cache.begin_fetch(images) == (absent, tuple(expected))
        self.order = [i for i in self.order if i not in expected]
        if absent:
            self.fetches.append(absent)

    @precondition(lambda self: self.fetches)
    @rule(ok=st.sampled_from((True, True, True, False)), data=st.data())
    def end_fetch(self, ok: bool, data: st.DataObject) -> None:
        images = self.fetches.pop(data.draw(st.integers(0, len(self.fetches) - 1)))
        self.cache.end_fetch(images, ok)
        if ok:
            self.order += [image.id for image in images]

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        image = data.draw(st.sampled_from(self.order))
        self.cache.touch(image)
        self.used(image)

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        image = data.draw(st.sampled_from(self.order))
        self.cache.hold(image)
        self.held.append(image)
        self.used(image)

    def used(self, image: ImageId) -> None:
        self.order.remove(image)
        self.order.append(image)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        self.cache.unhold(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.order)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        image = data.draw(st.sampled_from(self.order))
        if image in self.held:
            with pytest.raises(IntegrityError, match="while a copy reads it"):
                self.cache.drop(image)
        else:
            self.cache.drop(image)
            self.order.remove(image)

    @invariant()
    def the_budget_holds_and_nothing_read_is_gone(self) -> None:
        self.cache.check_integrity()
        assert self.cache.used_bytes == sum(SIZE[i] for i in {*self.order, *self.fetching})
        assert self.cache.used_bytes <= self.cache.capacity
        for image in SIZE:
            assert self.cache.has(image) == (image in self.order)
            assert self.cache.is_fetching(image) == (image in self.fetching)
        assert set(self.held) <= set(self.order)


HostCacheMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestHostCache = HostCacheMachine.TestCase


def test_audit_notices_damaged_books() -> None:
    image = IMAGES[5]
    cache = HostCache(10)
    cache.end_fetch(cache.begin_fetch((image,))[0], ok=True)
    cache.check_integrity()
    cache.capacity = 5
    with pytest.raises(IntegrityError, match="over the budget"):
        cache.check_integrity()
    cache.capacity = 10
    cache.hold(image.id)
    del cache._cached[image.id]
    cache.used_bytes = 0
    with pytest.raises(IntegrityError, match="held is not cached"):
        cache.check_integrity()


def _cache(*cached: Image, fetching: tuple[Image, ...] = (), capacity: int = 10) -> HostCache:
    cache = HostCache(capacity)
    for image in cached:
        cache.end_fetch(cache.begin_fetch((image,))[0], ok=True)
    if fetching:
        cache.begin_fetch(fetching)
    return cache


def _claim(image: Image, due_s: float, margin_s: float = 4.0) -> CacheClaim:
    return CacheClaim((image,), lambda: due_s, margin_s)


def test_a_fetch_drops_nothing_that_is_claimed_and_due_before_it() -> None:
    first, second, new = (Image(ImageId(name), 5) for name in ("first", "second", "new"))
    cache = _cache(first, second)
    assert cache.would_drop((new,)) == ("first",)
    cache.claim("instance", _claim(first, due_s=2.0))
    assert cache.can_fetch((new,))
    assert not cache.respects_claims((new,), due_s=3.0)
    assert cache.respects_claims((new,), due_s=1.0)
    cache.claim("instance", _claim(second, due_s=2.0))
    assert cache.respects_claims((new,), due_s=3.0)


def test_room_is_left_for_what_waits_longer_than_its_margin() -> None:
    large, small, other = Image(ImageId("large"), 8), Image(ImageId("small"), 3), Image(ImageId("other"), 3)
    cache = _cache(fetching=(small,))
    assert not cache.can_fetch((large,))
    cache.claim("instance", _claim(large, due_s=2.0))
    assert cache.respects_claims((other,), due_s=5.0)
    assert not cache.respects_claims((other,), due_s=7.0)
    assert cache.respects_claims((large,), due_s=2.0) is False, "there is no room for it yet"
    cache.end_fetch((small,), ok=True)
    assert cache.respects_claims((large,), due_s=2.0)
    assert not cache.respects_claims((other,), due_s=7.0), "else it would be kept out again"
    cache.withdraw("instance")
    assert cache.respects_claims((other,), due_s=7.0)


def test_nothing_is_left_for_what_would_never_fit_or_is_no_longer_waited_for() -> None:
    huge, other = Image(ImageId("huge"), 11), Image(ImageId("other"), 3)
    cache = _cache()
    cache.claim("instance", _claim(huge, due_s=2.0))
    assert cache.respects_claims((other,), due_s=7.0)
    cache.claim("instance", CacheClaim((Image(ImageId("large"), 8),), lambda: inf, 4.0))
    assert cache.respects_claims((other,), due_s=7.0)
