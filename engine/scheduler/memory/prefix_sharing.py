"""How requests with the same beginning share KV: who is given which blocks, and when.

    step ends ──▶ `give`: whole cells of its prompts become known        (device index)
    page-out ends ──▶ `give_on_host`: so do their copies                 (host index)
    request begins ──▶ `take`: the known cells at its beginning become its own, as if it had computed them

A cell is shared only where its KV has the same bits in every request: from a point on the device's grid of
cells to the next, all of it prompt. Cells that the host alone has are paged in like any other KV.
"""

from tokenmux.core.facts import ModelId
from tokenmux.core.prefix import KnownPrefix, Prefix, PrefixKey
from tokenmux.scheduler.memory.kv_table import KvTable
from tokenmux.scheduler.memory.prefix_index import PrefixIndex
from tokenmux.scheduler.memory.slab import Cell


class PrefixSharing:
    """The two indices of an instance. That of the host is shared with other instances."""

    def __init__(self, device: PrefixIndex, host: PrefixIndex) -> None:
        self.device = device
        self.host = host

    def n_takeable(self, table: KvTable, n_prompt: int, grid: int) -> int:
        """How many tokens `take` would add to the table."""
        prefix, start = table.prefix, table.n_computed
        if prefix is None or start >= n_prompt or start % prefix.cell_tokens:
            return 0
        if len(table.device) != start // table.shape.block_size:
            return 0
        known = self.known(prefix, table.shape.block_size, n_prompt, grid, start, table.n_clean)
        return known.n_tokens - start

    def known(
        self, prefix: Prefix, block_size: int, n_prompt: int, grid: int, start: int = 0, clean: int = 0
    ) -> KnownPrefix:
        """How much KV of a prompt's beginning there is for a request that has `start` tokens of it, `clean`
        of them on the host."""
        cell, end = prefix.cell_tokens, start
        if not prefix.reads or cell % block_size:
            return KnownPrefix(start, 0)
        away = []
        for key in prefix.keys[start // cell : (n_prompt - 1) // cell]:
            on_host = clean == end and key in self.host
            on_device = key in self.device
            if not on_host and not on_device:
                break
            end += cell
            clean = end if on_host else clean
            away.append(not on_device)
        while end > start and end % grid:
            end -= cell
        return KnownPrefix(end, cell * sum(away[: (end - start) // cell]))

    def take(self, table: KvTable, n_prompt: int, grid: int) -> int:
        """Add known cells at the table's end, so that a prompt of `n_prompt` tokens keeps one to compute, and
        ends on the device's `grid` of cells. Returns how many tokens that adds."""
        n_taken = self.n_takeable(table, n_prompt, grid)
        prefix = table.prefix
        if not n_taken or prefix is None:
            return 0
        cell = prefix.cell_tokens
        n_blocks = cell // table.shape.block_size
        end = table.n_computed + n_taken
        for key in prefix.keys[table.n_computed // cell : end // cell]:
            on_device = self.device.share(key)
            on_host = self.host.share(key) if table.n_clean == table.n_computed else None
            table.device.extend(on_device or [None] * n_blocks)
            table.host.extend(on_host or [None] * n_blocks)
            table.n_missing += 0 if on_device else n_blocks
            table.n_computed += cell
            table.n_clean = table.n_computed if on_host else table.n_clean
        table.n_shared = table.n_computed
        self._touch(prefix.keys[: end // cell])
        return n_taken

    def give(self, table: KvTable, n_prompt: int, grid: int, *, may_swap: bool) -> int:
        """Make the whole cells known that the table has computed on the device. If another request was
        faster, its blocks take the place of the table's own where no operation uses those (`may_swap`).
        Returns how many cells are new."""
        prefix = table.prefix
        if prefix is None or not prefix.writes or prefix.cell_tokens % table.shape.block_size:
            return 0
        cell, block_size = prefix.cell_tokens, table.shape.block_size
        n_whole = min(table.n_computed, n_prompt - n_prompt % grid) // cell
        n_new = 0
        for place in range(table.n_shared // cell, n_whole):
            key = prefix.keys[place]
            blocks = slice(place * cell // block_size, (place + 1) * cell // block_size)
            own = tuple(block for block in table.device[blocks] if block is not None)
            if key not in self.device:
                self.device.keep(Cell(key, prefix.model, own))
                n_new += 1
            elif may_swap:
                table.device[blocks] = self.device.share(key) or own
                self.device.pool.free(own)
            table.n_shared = (place + 1) * cell
        if n_new:
            self._touch(prefix.keys[:n_whole])
        return n_new

    def give_on_host(self, table: KvTable) -> None:
        """Make the host copies of cells known that were computed or taken by the table."""
        prefix = table.prefix
        if prefix is None or not prefix.writes:
            return
        cell, block_size = prefix.cell_tokens, table.shape.block_size
        for place in range(min(table.n_clean, table.n_shared) // cell):
            if prefix.keys[place] not in self.host:
                blocks = table.host[place * cell // block_size : (place + 1) * cell // block_size]
                own = tuple(block for block in blocks if block is not None)
                self.host.keep(Cell(prefix.keys[place], prefix.model, own))

    def forget(self, model: ModelId) -> None:
        """Forget a model's cells."""
        self.device.forget(model)
        self.host.forget(model)

    def _touch(self, keys: tuple[PrefixKey, ...]) -> None:
        self.device.touch(keys)
        self.host.touch(keys)
