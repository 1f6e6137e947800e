"""The books of one instance: what holds its memory. Weights in extents, KV in blocks on the device and on the
host.

The ledger says whether something is possible and records it. The policy decides, the instance orders, the
device moves bytes. Everything here is integers.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from tokenmux.core.errors import IllegalPlan, IntegrityError
from tokenmux.core.facts import DeviceFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.handles import BlockHandle, ExtentHandle, ExtentMove, Transfer
from tokenmux.core.prefix import Prefix
from tokenmux.core.request import RequestId
from tokenmux.scheduler.memory.arena import Arena, aligned
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv, ParkedKv
from tokenmux.scheduler.memory.kv_table import KvTable
from tokenmux.scheduler.memory.prefix_index import PrefixIndex
from tokenmux.scheduler.memory.prefix_sharing import PrefixSharing
from tokenmux.scheduler.memory.slabs import SlabPool


class Ledger:
    """The books of one instance's arena. The host cache is shared with the other instances of the host, and
    so may the host KV be. Requests with the same beginning share blocks (`sharing`)."""

    def __init__(self, device: DeviceFacts, cache: HostCache, host_kv: HostKv | None = None) -> None:
        """Without `host_kv` the instance has its own, of `device.host_kv_bytes`."""
        self.arena = Arena(device.arena_bytes)
        self.blocks = SlabPool(self.arena, aligned(device.slab_bytes))
        self.host_kv = HostKv(device.host_kv_bytes, device.slab_bytes) if host_kv is None else host_kv
        self.host_arena = self.host_kv.arena
        self.host_blocks = self.host_kv.blocks
        self.sharing = PrefixSharing(PrefixIndex(self.blocks), self.host_kv.prefixes)
        self.cache = cache
        self.version = 0
        """Changes whenever weights come or go."""
        self.kv: dict[RequestId, KvTable] = {}
        self._extents: dict[ImageId, ExtentHandle] = {}
        self._users: dict[ImageId, Counter[ModelId]] = {}
        """How many times each model placed the image: twice if it was registered again while an operation
        still used the old registration."""
        self._arriving: set[BlockHandle] = set()
        self.host_kv.join(self.kv)

    def retire(self) -> None:
        """The device is gone. Raises IntegrityError if a request still has KV on the host."""
        self.host_kv.leave(self.kv)
        self.cache.withdraw(self)

    def resize(self, arena_bytes: int) -> None:
        """Replace the empty books by those of an arena of `arena_bytes`. Raises IntegrityError if the
        arena is not empty."""
        if self.arena.used_bytes or self.arena.frozen:
            raise IntegrityError(
                f"ledger: the arena is replaced while it holds {self.arena.used_bytes} bytes"
            )
        self.arena = Arena(arena_bytes)
        self.blocks = SlabPool(self.arena, self.blocks.slab_bytes)
        self.sharing.device = PrefixIndex(self.blocks)

    # ── weights ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def free_bytes(self) -> int:
        """Free bytes of the arena, if KV that no request uses were let go."""
        return self.arena.free_bytes + self.blocks.n_idle_slabs * self.blocks.slab_bytes

    @property
    def weight_bytes(self) -> int:
        return sum(self.arena.size(extent) for extent in self._extents.values())

    def extent(self, image: ImageId) -> ExtentHandle:
        return self._extents[image]

    def absent_images(self, model: ModelFacts) -> tuple[Image, ...]:
        """Images of the model that have no extent yet."""
        return tuple(image for image in model.images if image.id not in self._extents)

    def images_to_place(self, model: ModelFacts, evicted: Iterable[ModelFacts]) -> tuple[Image, ...]:
        """Images of the model that would have no extent if `evicted` were evicted, including those that
        only `evicted` share with it."""
        absent = self.absent_images(model)
        if absent == model.images:
            return absent
        freed = self._freed_by(evicted)
        extents = ((image, self._extents.get(image.id)) for image in model.images)
        return tuple(image for image, extent in extents if extent is None or extent in freed)

    def can_place(self, model: ModelFacts) -> bool:
        """True if every absent image of the model finds a hole, without moving anything but KV that no
        request uses."""
        absent = self.absent_images(model)
        if self._find_holes(absent):
            return True
        return bool(self.blocks.n_idle_slabs) and self.hole_without(()) >= self.bytes_to_place(model)

    def _find_holes(self, images: tuple[Image, ...]) -> bool:
        """True if every image finds a hole now."""
        if len(images) == 1:
            return self.arena.largest_hole >= aligned(images[0].n_bytes)
        handles = [self.arena.allocate_low(image.n_bytes) for image in images]
        for handle in handles:
            if handle is not None:
                self.arena.free(handle)
        return None not in handles

    def bytes_to_place(self, model: ModelFacts) -> int:
        return sum(aligned(image.n_bytes) for image in self.absent_images(model))

    def place(self, model: ModelFacts) -> tuple[Image, ...]:
        """Give the model's absent images extents. Returns them: they have to be copied."""
        self.version += 1
        if self._extents:  # a model alone has room: its prompts find what they share from the beginning
            self.blocks.packed_bytes = self.arena.capacity
        absent = self.absent_images(model)
        if not self.can_place(model):
            raise IllegalPlan(
                f"{model.id} needs {self.bytes_to_place(model)} bytes that have no place in the arena"
            )
        if self.blocks.n_idle_slabs and (len(absent) == 1 or not self._find_holes(absent)):
            n_bytes = self.bytes_to_place(model)
            self.blocks.evict_idle(self.arena.freed_for(n_bytes, self.blocks.idle_extents))
        for image in absent:
            extent = self.arena.allocate_low(image.n_bytes)
            assert extent is not None
            self._extents[image.id] = extent
        for image in model.images:
            self._users.setdefault(image.id, Counter())[model.id] += 1
        return absent

    def displace(self, model: ModelFacts) -> None:
        """Free the model's extents, except those that another resident model shares."""
        self.version += 1
        self.blocks.packed_bytes = self.arena.capacity
        for image in model.images:
            users = self._users[image.id]
            users[model.id] -= 1
            if not +users:
                del self._users[image.id]
                self.arena.free(self._extents.pop(image.id))

    def plan_compaction(
        self,
        n_bytes: int,
        fixed: Iterable[ModelFacts],
        evicted: Iterable[ModelFacts] = (),
        fixed_kv: Iterable[RequestId] | None = None,
    ) -> tuple[ExtentMove, ...] | None:
        """Moves after which `n_bytes` are contiguous, leaving the weights of `fixed` where they are.

        KV may move too, except that of the requests `fixed_kv`; with None no KV may move. KV that no request
        uses counts as gone: let it go before the moves are applied.
        """
        still = {image.id for model in fixed for image in model.images}
        movable = {extent for image, extent in self._extents.items() if image not in still}
        freed = self._freed_by(evicted) | self.blocks.idle_extents
        slots: AbstractSet[ExtentHandle] = frozenset()
        if fixed_kv is not None:
            tables = (self.kv[request] for request in fixed_kv)
            slots = self.blocks.extents_without(h for table in tables for h in table.device if h is not None)
        return self.arena.plan_compaction(n_bytes, movable, freed, slots - freed)

    def apply(self, moves: tuple[ExtentMove, ...]) -> tuple[ExtentMove, ...]:
        """Record moves in the books, in order; returns what the device has to move.

        For weights that is the extent. For a slab it is its blocks, which keep their order but not their
        distance from the slab's start, since a block's address is a multiple of its size.
        """
        on_device = []
        for move in moves:
            source = self.blocks.span(move.handle)
            self.arena.apply((move,))
            target = self.blocks.span(move.handle)
            if source and target:
                move = ExtentMove(move.handle, source[0], target[0], source[1])
            on_device.append(move)
        return tuple(on_device)

    def hole_without(self, evicted: Iterable[ModelFacts]) -> int:
        """Size of the largest hole if these models were evicted, and KV that no request uses let go."""
        if self.arena.frozen:
            return 0
        return self.arena.hole_without(self._freed_by(evicted) | self.blocks.idle_extents)

    def moved_models(self, moves: tuple[ExtentMove, ...]) -> set[ModelId]:
        """Models whose weights these moves touch."""
        handles = {move.handle for move in moves}
        return {
            m for image, extent in self._extents.items() if extent in handles for m in +self._users[image]
        }

    def _freed_by(self, evicted: Iterable[ModelFacts]) -> set[ExtentHandle]:
        leaving = {model.id for model in evicted}
        if not leaving:
            return set()
        return {
            self._extents[image]
            for image, users in self._users.items()
            if all(n == (model in leaving) or n == 0 for model, n in users.items())
        }

    # ── KV ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, request: RequestId, shape: KvShape, prefix: Prefix | None = None) -> KvTable:
        table = self.kv[request] = KvTable(shape, prefix)
        return table

    def adopt(self, request: RequestId, n_tokens: int) -> None:
        """Take over KV of the request's first `n_tokens` tokens: what is parked, or else what lies in the
        memory of another host and is copied into blocks of this one. Forget it if there is no room."""
        table = self.kv[request]
        if request in self.host_kv.parked:
            handles: list[BlockHandle] | None = self.host_kv.take(request, table.shape, n_tokens)
        else:
            handles = self.host_blocks.allocate(table.shape.block_bytes, table.shape.blocks_for(n_tokens))
        if handles:
            table.host = list(handles)
            table.device = [None] * len(handles)
            table.n_missing = len(handles)
            table.n_computed = table.n_clean = n_tokens

    def park(self, request: RequestId) -> None:
        """The request leaves: free what it held on the device, and park the KV that the host has."""
        table = self.kv.pop(request)
        self.blocks.free(table.take_device())
        n_kept, host = table.shape.blocks_for(table.n_clean), [h for h in table.host if h is not None]
        self.host_blocks.free(host[n_kept:])
        if n_kept:
            self.host_kv.park(request, ParkedKv(table.shape, tuple(host[:n_kept]), table.n_clean))

    def close(self, request: RequestId) -> None:
        """Free everything that the request held."""
        table = self.kv.pop(request)
        self.blocks.free(table.take_device())
        self.host_blocks.free(table.take_host())

    def can_grow(self, tables: Iterable[tuple[KvTable, int]]) -> bool:
        """True if all tables together can get device room for their numbers of tokens."""
        block_bytes = need = 0
        for table, n_tokens in tables:
            more = table.blocks_to_grow(n_tokens)
            if more:
                if need and table.shape.block_bytes != block_bytes:
                    raise IllegalPlan("one step grows KV of one shape only")
                block_bytes = table.shape.block_bytes
                need += more
        return not need or self.blocks.can_allocate(block_bytes, need)

    def grow(self, table: KvTable, n_tokens: int) -> None:
        """Give the table device room for `n_tokens` tokens."""
        more = table.blocks_to_grow(n_tokens)
        if more:
            handles = self.blocks.allocate(table.shape.block_bytes, more)
            if handles is None:
                raise IllegalPlan(f"no room for {more} more KV blocks of {table.shape.block_bytes} bytes")
            table.grow(handles)

    def can_page_in(self, table: KvTable) -> bool:
        return self.blocks.can_allocate(table.shape.block_bytes, table.n_missing)

    def begin_page_in(self, request: RequestId) -> tuple[Transfer, ...]:
        """Allocate device blocks for everything that is only on the host. The table names them once they
        are filled."""
        table = self.kv[request]
        places = table.missing()
        handles = self.blocks.allocate(table.shape.block_bytes, len(places))
        if handles is None:
            raise IllegalPlan(f"no room to page in {len(places)} blocks of {request}")
        transfers = []
        for place, handle in zip(places, handles, strict=True):
            host = table.host[place]
            if host is None:
                raise IntegrityError(f"{request}: block {place} is neither on the device nor on the host")
            transfers.append(Transfer(table.shape, handle, host))
        self._arriving.update(handles)
        return tuple(transfers)

    def end_page_in(self, request: RequestId, transfers: Iterable[Transfer], ok: bool) -> None:
        table = self.kv[request]
        filled = [transfer.device for transfer in transfers]
        self._arriving.difference_update(filled)
        if not ok:
            self.blocks.free(filled)
            return
        for place, handle in zip(table.missing(), filled, strict=True):
            table.device[place] = handle
        table.n_missing = 0

    def can_page_out(self, table: KvTable) -> bool:
        if self.arena.frozen:
            return False
        need = sum(1 for place in table.dirty() if table.host[place] is None)
        return self.host_blocks.can_allocate(table.shape.block_bytes, need)

    def begin_page_out(self, request: RequestId) -> tuple[Transfer, ...]:
        """Allocate host blocks for the dirty tail; returns what to copy into them."""
        table = self.kv[request]
        places = table.dirty()
        fresh = [place for place in places if table.host[place] is None]
        if self.arena.frozen:
            raise IllegalPlan(f"{request} cannot be paged out while blocks are being moved")
        handles = self.host_blocks.allocate(table.shape.block_bytes, len(fresh))
        if handles is None:
            raise IllegalPlan(f"no room on the host to page out {len(fresh)} blocks of {request}")
        for place, handle in zip(fresh, handles, strict=True):
            table.host[place] = handle
        transfers = []
        for place in places:
            device, host = table.device[place], table.host[place]
            if device is None or host is None:
                raise IntegrityError(f"{request}: dirty block {place} is not on the device")
            transfers.append(Transfer(table.shape, device, host))
        return tuple(transfers)

    def end_page_out(self, request: RequestId, n_clean: int, ok: bool) -> None:
        """Record that the host copy is valid for the first `n_clean` tokens (those computed when the copy
        began).

        If the copy failed, or never began, host blocks without a valid token are freed.
        """
        table = self.kv[request]
        if ok:
            table.n_clean = max(table.n_clean, n_clean)
            self.sharing.give_on_host(table)
            return
        n_kept = table.shape.blocks_for(table.n_clean)
        self.host_blocks.free(handle for handle in table.host[n_kept:] if handle is not None)
        table.host[n_kept:] = [None] * (len(table.host) - n_kept)

    def drop(self, request: RequestId) -> None:
        """Forget the device copies of a request whose KV the host has in full."""
        table = self.kv[request]
        if not table.is_clean:
            raise IllegalPlan(f"{request} has KV that only the device holds; page it out before dropping it")
        self.blocks.free(table.take_device())

    def discard(self, request: RequestId) -> None:
        """Forget all KV of a request, to be rebuilt from its token ids."""
        table = self.kv[request]
        self.blocks.free(table.take_device())
        self.host_blocks.free(table.take_host())
        self.kv[request] = KvTable(table.shape, table.prefix)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every extent has exactly one owner, and every block its users."""
        self.arena.check_integrity()
        self.host_kv.check_integrity()
        self.cache.check_integrity()
        tables = self.kv.values()
        on_device = [h for table in tables for h in table.device if h is not None]
        self.blocks.check_integrity([*on_device, *self._arriving], self.sharing.device.cells)
        owned = {*self._extents.values(), *self.blocks.extents}
        if len(owned) != len(self._extents) + len(self.blocks.extents) or owned != set(self.arena.handles):
            raise IntegrityError("ledger: an extent of the arena has no owner, or two")
        for table in tables:
            if table.n_missing != len(table.missing()) or len(table.device) != len(table.host):
                raise IntegrityError("ledger: a KV table miscounts its blocks")
            if table.n_shared > table.n_computed:
                raise IntegrityError("ledger: blocks are shared that will be written")
