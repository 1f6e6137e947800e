"""KV through its whole life on a pretended device: whatever is paged, dropped and discarded, no token reads
another's KV.

The device and the host are dicts from block handle to the tokens written there. A block that nobody owns
loses its content, so that stale, lost or twice-owned KV shows as soon as it is looked at.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmux.core.errors import IllegalPlan, IntegrityError
from tokenmux.core.facts import DeviceFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.handles import BlockHandle, ExtentMove, Transfer
from tokenmux.core.prefix import PrefixKey
from tokenmux.core.request import RequestId
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.kv_table import KvTable
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.scheduler.memory.slab import Cell

SLAB_BYTES = 512
SHAPES = (KvShape(1, 1, 4, 2, 4), KvShape(3, 1, 3, 2, 4))
"""Blocks of 64 and of 144 bytes, of four tokens each."""

mostly = st.sampled_from((True, True, True, False))

Cells = dict[BlockHandle, dict[int, object]]


@dataclass
class Live:
    """One request: which tokens were computed (`version` tells a rebuilt KV from the one before), and its
    copy."""

    version: int = 0
    copying: str = ""
    transfers: tuple[Transfer, ...] = ()
    copied: list[tuple[BlockHandle, dict[int, object]]] = field(default_factory=list)
    n_at_begin: int = 0


def facts(arena_bytes: int, host_kv_bytes: int) -> DeviceFacts:
    return DeviceFacts("pretended", arena_bytes, host_kv_bytes, 1e9, 1e9, 1e9, 1e9, slab_bytes=SLAB_BYTES)


class KvMachine(RuleBasedStateMachine):
    """Requests of two shapes over an arena and a host pool of a few slabs each."""

    @initialize(n_device=st.integers(1, 4), n_host=st.integers(0, 4))
    def create(self, n_device: int, n_host: int) -> None:
        self.ledger = Ledger(facts(n_device * SLAB_BYTES, n_host * SLAB_BYTES), HostCache(0))
        self.device: Cells = {}
        self.host: Cells = {}
        self.live: dict[RequestId, Live] = {}
        self.n_opened = 0

    def some(self, copying: str = "", **wanted: bool) -> list[RequestId]:
        """Live requests in this state of copying, whose tables answer so (`is_clean`, `on_device`)."""
        return [
            request
            for request, live in self.live.items()
            if live.copying == copying
            and all(getattr(self.ledger.kv[request], name) == answer for name, answer in wanted.items())
        ]

    def truth(self, request: RequestId, token: int) -> object:
        return (request, self.live[request].version, token)

    @precondition(lambda self: len(self.live) < 3)
    @rule(shape=st.sampled_from(SHAPES))
    def open(self, shape: KvShape) -> None:
        request = RequestId(f"r{self.n_opened}")
        self.n_opened += 1
        self.ledger.open(request, shape)
        self.live[request] = Live()

    @precondition(lambda self: self.some(on_device=True) + self.some("out"))
    @rule(data=st.data(), n_tokens=st.integers(1, 9), spare=st.integers(0, 5))
    def compute(self, data: st.DataObject, n_tokens: int, spare: int) -> None:
        """A step: room for `spare` more tokens than are computed then, as after a burst that ended early."""
        request = data.draw(st.sampled_from(self.some(on_device=True) + self.some("out")))
        table = self.ledger.kv[request]
        end = table.n_computed + n_tokens
        if not self.ledger.can_grow([(table, end + spare)]):
            with pytest.raises(IllegalPlan, match="no room"):
                self.ledger.grow(table, end + spare)
            return
        self.ledger.grow(table, end + spare)
        for token in range(table.n_computed, end):
            handle = table.device[token // table.shape.block_size]
            assert handle is not None
            self.device.setdefault(handle, {})[token % table.shape.block_size] = self.truth(request, token)
        table.n_computed = end

    @precondition(lambda self: self.some(is_clean=False))
    @rule(data=st.data())
    def begin_page_out(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.some(is_clean=False)))
        live, table = self.live[request], self.ledger.kv[request]
        if not self.ledger.can_page_out(table):
            with pytest.raises(IllegalPlan, match="no room on the host"):
                self.ledger.begin_page_out(request)
            return
        transfers = self.ledger.begin_page_out(request)
        live.copying, live.n_at_begin = "out", table.n_computed
        live.copied = [(t.host, dict(self.device[t.device])) for t in transfers]

    @precondition(lambda self: self.some(on_device=False))
    @rule(data=st.data())
    def begin_page_in(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.some(on_device=False)))
        live, table = self.live[request], self.ledger.kv[request]
        if not self.ledger.can_page_in(table):
            with pytest.raises(IllegalPlan, match="no room to page in"):
                self.ledger.begin_page_in(request)
            return
        live.transfers, live.copying = self.ledger.begin_page_in(request), "in"

    @precondition(lambda self: self.some("out"))
    @rule(data=st.data(), ok=mostly)
    def end_page_out(self, data: st.DataObject, ok: bool) -> None:
        """What arrives on the host is what the device held when the copy began, no token more."""
        request = data.draw(st.sampled_from(self.some("out")))
        live = self.live[request]
        live.copying = ""
        if ok:
            self.host.update(live.copied)
        self.ledger.end_page_out(request, live.n_at_begin, ok)

    @precondition(lambda self: self.some("in"))
    @rule(data=st.data(), ok=mostly)
    def end_page_in(self, data: st.DataObject, ok: bool) -> None:
        request = data.draw(st.sampled_from(self.some("in")))
        live = self.live[request]
        live.copying = ""
        for transfer in live.transfers if ok else ():
            self.device[transfer.device] = dict(self.host.get(transfer.host, {}))
        self.ledger.end_page_in(request, live.transfers, ok)
        assert self.ledger.kv[request].on_device == ok

    @precondition(lambda self: self.some(is_clean=True))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.some(is_clean=True)))
        self.ledger.drop(request)
        assert self.ledger.kv[request].on_device == (self.ledger.kv[request].n_computed == 0)

    @precondition(lambda self: self.some(is_clean=False))
    @rule(data=st.data())
    def drop_what_only_the_device_holds(self, data: st.DataObject) -> None:
        with pytest.raises(IllegalPlan, match="only the device holds"):
            self.ledger.drop(data.draw(st.sampled_from(self.some(is_clean=False))))

    @precondition(lambda self: self.some())
    @rule(data=st.data(), for_good=st.booleans())
    def forget(self, data: st.DataObject, for_good: bool) -> None:
        request = data.draw(st.sampled_from(self.some()))
        if for_good:
            self.ledger.close(request)
            del self.live[request]
        else:
            self.ledger.discard(request)
            self.live[request].version += 1
            assert self.ledger.kv[request].n_computed == 0

    @precondition(lambda self: len(self.live) < 3)
    @rule(shape=st.sampled_from(SHAPES), n_tokens=st.integers(1, 30))
    def adopt(self, shape: KvShape, n_tokens: int) -> None:
        """A request comes with KV that another instance left in host memory; without room for it, it has
        none."""
        self.open(shape)
        request = list(self.live)[-1]
        self.ledger.adopt(request, n_tokens)
        table = self.ledger.kv[request]
        assert (table.n_computed, table.n_clean, table.on_device) in (
            (n_tokens, n_tokens, False),
            (0, 0, True),
        )
        for token in range(table.n_computed):
            handle = table.host[token // shape.block_size]
            assert handle is not None
            self.host.setdefault(handle, {})[token % shape.block_size] = self.truth(request, token)

    @invariant()
    def every_token_reads_its_own_kv(self) -> None:
        self.ledger.check_integrity()
        self.forget_what_nobody_owns()
        for request, table in self.ledger.kv.items():
            on_device = table.n_computed if table.on_device else 0
            for token in range(on_device):
                assert self.read(self.device, table.device, table, token) == self.truth(request, token)
            for token in range(table.n_clean):
                assert self.read(self.host, table.host, table, token) == self.truth(request, token)

    def read(self, cells: Cells, row: list[BlockHandle | None], table: KvTable, token: int) -> object:
        handle = row[token // table.shape.block_size]
        return None if handle is None else cells.get(handle, {}).get(token % table.shape.block_size)

    def forget_what_nobody_owns(self) -> None:
        tables = self.ledger.kv.values()
        owned = {h for table in tables for h in table.device}
        kept = {h for table in tables for h in table.host}
        self.device = {handle: tokens for handle, tokens in self.device.items() if handle in owned}
        self.host = {handle: tokens for handle, tokens in self.host.items() if handle in kept}

    def teardown(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for request, live in self.live.items():
            if live.copying == "in":
                self.ledger.end_page_in(request, live.transfers, ok=False)
            self.ledger.close(request)
        self.ledger.check_integrity()
        assert self.ledger.arena.used_bytes == self.ledger.host_arena.used_bytes == 0


KvMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50)
TestKv = KvMachine.TestCase


SHARED = tuple(Image(ImageId(name), n) for name, n in zip("ABCDE", (100, 250, 400, 640, 70), strict=True))
MODELS = tuple(
    ModelFacts(ModelId(name), images, SHAPES[0], 100, 100)
    for name, images in {
        "base": SHARED[:1],
        "adapted": (SHARED[0], SHARED[4]),
        "two-ranks": SHARED[1:3],
        "rank-and-adapter": (SHARED[2], SHARED[4]),
        "large": SHARED[3:4],
    }.items()
)


class WeightsMachine(RuleBasedStateMachine):
    """Models that share images, in an arena where only some of them fit, between slabs of KV."""

    @initialize(units=st.integers(8, 30))
    def create(self, units: int) -> None:
        self.ledger = Ledger(facts(units * 64, 0), HostCache(0))
        self.resident: dict[ModelId, ModelFacts] = {}
        self.blocks: list[BlockHandle] = []
        self.where: dict[ImageId, tuple[int, int]] = {}

    def images_of(self, models: list[ModelFacts]) -> set[ImageId]:
        return {image.id for model in models for image in model.images}

    @rule(model=st.sampled_from(MODELS))
    def place(self, model: ModelFacts) -> None:
        if model.id in self.resident:
            return
        here = self.images_of(list(self.resident.values()))
        absent = tuple(image for image in model.images if image.id not in here)
        assert self.ledger.absent_images(model) == absent
        possible = self.ledger.can_place(model)
        if self.ledger.arena.largest_hole >= self.ledger.bytes_to_place(model):
            assert possible
        if not possible:
            with pytest.raises(IllegalPlan, match="no place in the arena"):
                self.ledger.place(model)
            return
        assert self.ledger.place(model) == absent
        self.resident[model.id] = model
        self.remember()

    @precondition(lambda self: self.resident)
    @rule(data=st.data())
    def displace(self, data: st.DataObject) -> None:
        """Asked beforehand, the ledger knows what hole it would leave."""
        leaving = data.draw(st.lists(st.sampled_from(list(self.resident)), min_size=1, unique=True))
        hole = self.ledger.hole_without(self.resident[model] for model in leaving)
        for model in leaving:
            self.ledger.displace(self.resident.pop(model))
        assert self.ledger.arena.largest_hole == hole
        self.remember()

    @precondition(lambda self: self.resident)
    @rule(data=st.data(), n_bytes=st.integers(64, 1200))
    def compact(self, data: st.DataObject, n_bytes: int) -> None:
        """Sliding leaves the weights of `fixed` alone and tells whose weights it moves."""
        fixed = data.draw(st.lists(st.sampled_from(list(self.resident)), unique=True))
        before = dict(self.where)
        moves: tuple[ExtentMove, ...] | None
        moves = self.ledger.plan_compaction(n_bytes, [self.resident[model] for model in fixed])
        if moves is None:
            return
        touched = self.ledger.moved_models(moves)
        self.ledger.arena.apply(moves)
        self.remember()
        changed = {image for image in before if before[image] != self.where[image]}
        assert touched == {m for m, model in self.resident.items() if changed & self.images_of([model])}
        assert not touched & set(fixed)
        assert self.ledger.arena.largest_hole >= n_bytes

    @rule(n=st.integers(1, 4))
    def write_kv(self, n: int) -> None:
        table = self.ledger.kv.get(RequestId("r")) or self.ledger.open(RequestId("r"), SHAPES[1])
        n_tokens = (len(table.device) + n) * table.shape.block_size
        if self.ledger.can_grow([(table, n_tokens)]):
            self.ledger.grow(table, n_tokens)

    @precondition(lambda self: self.ledger.kv)
    @rule()
    def end_kv(self) -> None:
        self.ledger.close(RequestId("r"))

    def remember(self) -> None:
        images = self.images_of(list(self.resident.values()))
        extents = {image: self.ledger.extent(image) for image in images}
        self.where = {i: (self.ledger.arena.offset(e), self.ledger.arena.size(e)) for i, e in extents.items()}

    @invariant()
    def each_image_has_one_extent_while_somebody_uses_it(self) -> None:
        self.ledger.check_integrity()
        place = self.where.copy()
        self.remember()
        assert self.where == place, "an extent moved on its own"
        assert self.ledger.weight_bytes == sum(size for _, size in self.where.values())
        for image in SHARED:
            if image.id in self.where:
                assert self.where[image.id][1] >= image.n_bytes

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            for model in self.resident.values():
                self.ledger.displace(model)
            for request in list(self.ledger.kv):
                self.ledger.close(request)
            assert self.ledger.arena.used_bytes == 0


WeightsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestWeights = WeightsMachine.TestCase


def ledger_with_kv() -> tuple[Ledger, KvTable]:
    ledger = Ledger(facts(2 * SLAB_BYTES, SLAB_BYTES), HostCache(0))
    table = ledger.open(RequestId("r"), SHAPES[0])
    ledger.grow(table, 8)
    table.n_computed = 8
    return ledger, table


def test_one_step_grows_one_shape() -> None:
    ledger, table = ledger_with_kv()
    other = ledger.open(RequestId("s"), SHAPES[1])
    with pytest.raises(IllegalPlan, match="one shape only"):
        ledger.can_grow([(table, 12), (other, 4)])


def test_audit_notices_a_leaked_block() -> None:
    ledger, table = ledger_with_kv()
    table.device.pop()
    table.host.pop()
    with pytest.raises(IntegrityError, match="1 blocks leaked"):
        ledger.check_integrity()


def test_audit_notices_a_leaked_extent() -> None:
    ledger, _ = ledger_with_kv()
    ledger.place(MODELS[0])
    ledger.check_integrity()
    del ledger._extents[SHARED[0].id]
    with pytest.raises(IntegrityError, match="no owner"):
        ledger.check_integrity()


def test_audit_notices_a_miscounted_table() -> None:
    ledger, table = ledger_with_kv()
    table.n_missing = 1
    with pytest.raises(IntegrityError, match="miscounts"):
        ledger.check_integrity()


@given(
    slab_bytes=st.integers(1, 3000),
    arena_bytes=st.integers(1, 30000),
    sizes=st.lists(st.integers(1, 6000), min_size=1, max_size=6),
    blocks=st.lists(st.integers(0, 6), max_size=4),
    wanted=st.integers(1, 12000),
    data=st.data(),
)
def test_every_extent_starts_at_a_multiple_of_256(
    slab_bytes, arena_bytes, sizes, blocks, wanted, data
) -> None:
    """Whatever sizes weights and slabs have, also after evictions, compactions and weights placed where
    others lay."""
    device = DeviceFacts("pretended", arena_bytes, arena_bytes, 1e9, 1e9, 1e9, 1e9, slab_bytes=slab_bytes)
    ledger = Ledger(device, HostCache(0))
    shape = SHAPES[0]
    models = [
        ModelFacts(ModelId(str(i)), (Image(ImageId(str(i)), size),), shape, 64, 100)
        for i, size in enumerate(sizes)
    ]

    def check() -> None:
        assert ledger.arena.capacity % 256 == 0
        for arena in (ledger.arena, ledger.host_arena):
            assert all(arena.offset(handle) % 256 == 0 for handle in arena.handles)

    placed: list[ModelFacts] = []
    for turn in range(2):
        for model in models:
            if model not in placed and ledger.can_place(model):
                ledger.place(model)
                placed.append(model)
        for n in blocks:
            for pool in (ledger.blocks, ledger.host_blocks):
                if n and pool.capacity(shape.block_bytes):
                    pool.allocate(shape.block_bytes, n)
        check()
        for model in data.draw(st.lists(st.sampled_from(models), unique=True), label=f"leave in turn {turn}"):
            if model in placed:
                placed.remove(model)
                ledger.displace(model)
        moves = ledger.plan_compaction(wanted, (), fixed_kv=())
        assert all(move.source % 256 == move.target % 256 == 0 for move in moves or ())
        if moves:
            ledger.apply(moves)
        check()


def test_weights_of_several_images_take_holes_between_idle_kv() -> None:
    """Each image has its hole, though there is none for all of them together."""
    ledger = Ledger(facts(4 * SLAB_BYTES, 0), HostCache(0))
    shape = SHAPES[0]
    low, high = (Image(ImageId(name), SLAB_BYTES) for name in ("low", "high"))
    middle = ModelFacts(ModelId("middle"), (Image(ImageId("middle"), SLAB_BYTES),), shape, 64, 100)
    below = ModelFacts(ModelId("below"), (Image(ImageId("below"), SLAB_BYTES),), shape, 64, 100)
    for model in (below, middle):
        ledger.place(model)
    above = ledger.arena.allocate_low(SLAB_BYTES)
    assert above is not None
    blocks = ledger.blocks.allocate(shape.block_bytes, 1) or ()
    ledger.blocks.keep(Cell(PrefixKey(b"k"), ModelId("m"), blocks))
    ledger.blocks.free(blocks)
    assert ledger.blocks.n_idle_slabs == 1
    ledger.displace(below)
    ledger.arena.free(above)
    both = ModelFacts(ModelId("both"), (low, high), shape, 64, 100)
    assert ledger.place(both) == (low, high)
    assert ledger.blocks.n_idle_slabs == 1, "there was room enough"
