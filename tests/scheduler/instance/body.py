"""A body for an instance whose device is a list: plans are carried out cell by cell, and every read is
checked.

Every byte of the arena and of the host KV is one cell, and says what was written there last. Weights are
written when an activation ends, KV when a step ends, copies when they end; until then their targets are
poison. So a plan that the instance should have refused, or books that drift from the device, show as a wrong
cell.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from tokenmux.core.effects import Effect, Effects, RequestEnded, ResizeReady, operations_started
from tokenmux.core.event import Arrived, CopyDone, Event, ModelAdded, Resized, StepDone
from tokenmux.core.facts import DeviceFacts, HostFacts, Image, ModelFacts, ModelId
from tokenmux.core.handles import BlockHandle
from tokenmux.core.plan import Channel, Plan
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedCopy,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.scheduler.memory.kv_table import KvTable
from tokenmux.scheduler.memory.slabs import SlabPool
from tokenmux.testing import ScriptedPolicy, make_instance

POISON = None
T = TypeVar("T")
Cells = list[object]


def device_facts(
    arena_bytes: int, host_kv_bytes: int, slab_bytes: int = 512, grid: int = 8, cell_tokens: int | None = None
) -> DeviceFacts:
    return DeviceFacts(
        "cells",
        arena_bytes,
        host_kv_bytes,
        copy_in_bytes_per_s=1e3,
        copy_out_bytes_per_s=1e3,
        memory_bytes_per_s=1e5,
        flops_per_s=1e6,
        step_overhead_s=0.001,
        copy_overhead_s=0.01,
        slab_bytes=slab_bytes,
        prefill_chunk_tokens=grid,
        prompt_cell_tokens=cell_tokens,
    )


class Body:
    """One instance, its cells, and what its requests should have by now."""

    def __init__(self, device: DeviceFacts, cache_bytes: int) -> None:
        host = HostFacts(cache_bytes, fetch_bytes_per_s=1e3)
        self.policy = ScriptedPolicy()
        self.instance = make_instance(device, self.policy, host)
        self.ledger = self.instance.ledger
        self.arena: Cells = [POISON] * self.ledger.arena.capacity
        self.host: Cells = [POISON] * self.ledger.host_arena.capacity
        self.now_s = 0.0
        self.flights: dict[Channel, Started] = {}
        self.effects: list[Effect] = []
        """All of them that `take` has not given away."""
        self.n_drawn: dict[RequestId, int] = {}
        self.ended: dict[RequestId, RequestRecord] = {}
        self._tables: dict[RequestId, list[KvTable]] = {}
        self._n_registered: Counter[ModelId] = Counter()
        self._registration: dict[RequestId, int] = {}
        """For which registration of its model a request is."""
        self._n_at_begin: dict[RequestId, int] = {}

    # ── driving ─────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self, channel: Channel, plan: Plan) -> Started | None:
        """Have the policy answer `plan` for this channel; raises IllegalPlan if the instance refuses it."""
        self.policy.plans = {channel: plan}
        return next(iter(operations_started(self._carry_out(self.instance.decide(self.now_s)))), None)

    def drain(self) -> bool:
        """Begin what empties the arena for a resize, or replace it; whether that is done."""
        effects = self._carry_out(self.instance.decide(self.now_s))
        return any(isinstance(effect, ResizeReady) for effect in effects)

    def take(self, kind: type[T]) -> list[T]:
        """The effects of this kind since the last call."""
        taken = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return taken

    def apply(self, event: Event) -> None:
        """Enter an event, and check books and cells."""
        was_parked = isinstance(event, Arrived) and event.request.id in self.ledger.host_kv.parked
        if isinstance(event, ModelAdded):
            self._n_registered[event.facts.id] += 1
        effects = self.instance.apply(event)
        if isinstance(event, Arrived):
            self._registration[event.request.id] = self._n_registered[event.request.model]
            self.n_drawn[event.request.id] = event.n_delivered
            if was_parked:
                # The same cells under another table: they must be what they were.
                self._tables.setdefault(event.request.id, [])[-1:] = [self.ledger.kv[event.request.id]]
            elif event.n_kept and self.instance.requests[event.request.id].kv.n_computed:
                self._adopt(event)
        self._carry_out(effects)
        self.check()

    def _carry_out(self, effects: Effects) -> Effects:
        self.effects += effects
        for effect in effects:
            if isinstance(effect, RequestEnded):
                request = effect.record.request.id
                assert request not in self.ended, "a request ended twice"
                assert effect.record.n_tokens == self.n_drawn[request]
                self.ended[request] = effect.record
            elif isinstance(effect, Started):
                self.flights[effect.channel] = effect
                self._begin(effect)
            elif isinstance(effect, ResizeReady):
                self.arena = [POISON] * effect.arena_bytes
                self.apply(Resized(self.now_s, effect.arena_bytes))
        return effects

    def complete(
        self,
        channel: Channel,
        error: str = "",
        superseded: bool = False,
        n_iterations: int | None = None,
        finished: Iterable[RequestId] = (),
    ) -> None:
        """The operation in flight on this channel ends now."""
        started = self.flights.pop(channel)
        if isinstance(started, StartedStep):
            n = n_iterations or started.operation.repeat
            ends_s = tuple(self.now_s + i * 0.001 for i in range(1, n + 1))
            self.now_s = ends_s[-1]
            self._carry_out_step(started, n)
            reasons = tuple((request, FinishReason.STOP) for request in finished)
            self.apply(StepDone(self.now_s, started.id, ends_s, reasons))
        else:
            done = CopyDone(self.now_s, started.id, error, superseded=superseded)
            if done.ok:
                self._carry_out_copy(started)
            self.apply(done)

    # ── carrying out ────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, started: Started) -> None:
        """From now on the targets are undefined."""
        match started:
            case StartedStep(operation=step):
                for chunk in step.chunks:
                    table = self.ledger.kv[chunk.request]
                    for token in range(chunk.start, len(table.device) * table.shape.block_size):
                        self._write_kv(self.arena, table.device, table, token, POISON)
            case StartedActivation():
                for image in started.images:
                    self._write_image(image, POISON)
            case StartedPageIn():
                for _, _, transfers in started.paged:
                    for t in transfers:
                        start = self.ledger.blocks.block_index(t.device) * t.shape.block_bytes
                        self.arena[start : start + t.shape.block_bytes] = [POISON] * t.shape.block_bytes
            case StartedPageOut():
                for paged in started.paged:
                    self._n_at_begin[paged.request] = paged.n_computed

    def _carry_out_step(self, started: StartedStep, n_iterations: int) -> None:
        self._check_weights(started.model)
        for chunk in started.operation.chunks:
            table, request = self.ledger.kv[chunk.request], self.instance.requests[chunk.request]
            draws = chunk.start + chunk.n_tokens == request.request.n_prompt + self.n_drawn[chunk.request]
            n_new = chunk.n_tokens + (n_iterations - 1 if draws else 0)
            for token in range(chunk.start, chunk.start + n_new):
                self._write_kv(self.arena, table.device, table, token, self._truth(chunk.request, token))
            self.n_drawn[chunk.request] += n_iterations if draws else 0

    def _carry_out_copy(self, started: StartedCopy) -> None:
        match started:
            case StartedActivation():
                for image in started.images:
                    self._write_image(image, image.id)
            case StartedCompaction():
                for move in started.moves:
                    content = self.arena[move.source : move.source + move.n_bytes]
                    self.arena[move.source : move.source + move.n_bytes] = [POISON] * move.n_bytes
                    self.arena[move.target : move.target + move.n_bytes] = content
            case StartedPageIn():
                for _, _, transfers in started.paged:
                    for t in transfers:
                        block = self._block(self.host, self.ledger.host_blocks, t.host, t.shape.block_bytes)
                        start = self.ledger.blocks.block_index(t.device) * t.shape.block_bytes
                        self.arena[start : start + t.shape.block_bytes] = block
            case StartedPageOut():
                for request, _, transfers in started.paged:
                    for t in transfers:
                        block = self._block(self.arena, self.ledger.blocks, t.device, t.shape.block_bytes)
                        start = self.ledger.host_blocks.block_index(t.host) * t.shape.block_bytes
                        self.host[start : start + t.shape.block_bytes] = block
                    self._forget_what_came_later(request)

    def _forget_what_came_later(self, request: RequestId) -> None:
        """A copy need not catch what a step wrote while it was under way."""
        table = self.ledger.kv[request]
        for token in range(self._n_at_begin.pop(request), table.n_computed):
            if table.host[token // table.shape.block_size] is not None:
                self._write_kv(self.host, table.host, table, token, POISON)

    def _adopt(self, event: Arrived) -> None:
        table = self.ledger.kv[event.request.id]
        for token in range(table.n_computed):
            self._write_kv(self.host, table.host, table, token, self._truth(event.request.id, token))

    # ── cells ───────────────────────────────────────────────────────────────────────────────────────────────

    def _truth(self, request: RequestId, token: int) -> object:
        """What the KV of a token is. In a cell that may be shared it is the same for all requests; elsewhere
        one that was discarded and rebuilt differs from its first version."""
        asked = self.instance.requests[request].request
        prefix, grid = asked.prefix, self.instance.device.cell_tokens
        cell, place = (0, 0) if prefix is None else divmod(token, prefix.cell_tokens)
        n_whole = asked.n_prompt - asked.n_prompt % grid
        if prefix is not None and (cell + 1) * prefix.cell_tokens <= n_whole:
            return (prefix.keys[cell], self._registration[request], place)
        tables = self._tables.setdefault(request, [])
        if not tables or tables[-1] is not self.ledger.kv[request]:
            tables.append(self.ledger.kv[request])
        return (request, len(tables), token)

    def _pool(self, memory: Cells) -> SlabPool:
        return self.ledger.blocks if memory is self.arena else self.ledger.host_blocks

    def _block(self, memory: Cells, pool: SlabPool, handle: BlockHandle, n_bytes: int) -> Cells:
        start = pool.block_index(handle) * n_bytes
        return memory[start : start + n_bytes]

    def _cells_of(self, memory: Cells, row: list[BlockHandle | None], table: KvTable, token: int) -> slice:
        handle = row[token // table.shape.block_size]
        assert handle is not None, f"token {token} has no block"
        start = self._pool(memory).block_index(handle) * table.shape.block_bytes
        start += token % table.shape.block_size * table.shape.token_bytes
        return slice(start, start + table.shape.token_bytes)

    def _write_kv(
        self, memory: Cells, row: list[BlockHandle | None], table: KvTable, token: int, value: object
    ) -> None:
        memory[self._cells_of(memory, row, table, token)] = [value] * table.shape.token_bytes

    def _write_image(self, image: Image, value: object) -> None:
        start = self.ledger.arena.offset(self.ledger.extent(image.id))
        self.arena[start : start + image.n_bytes] = [value and (value, i) for i in range(image.n_bytes)]

    # ── checking ────────────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        """Books balance, resident weights are whole, and all KV that a request may read is its own, or that
        of its beginning."""
        self.instance.check_integrity()
        for model in self.instance.resident_models.values():
            if not model.is_moving:
                self._check_weights(model.facts)
        for request, table in self.ledger.kv.items():
            if table.on_device and not self.ledger.arena.frozen:
                self._check_kv(self.arena, table.device, table, request, table.n_computed)
            self._check_kv(self.host, table.host, table, request, table.n_clean)

    def _check_weights(self, model: ModelFacts) -> None:
        for image in model.images:
            start = self.ledger.arena.offset(self.ledger.extent(image.id))
            cells = self.arena[start : start + image.n_bytes]
            assert cells == [(image.id, i) for i in range(image.n_bytes)], f"{image.id} is damaged"

    def _check_kv(
        self,
        memory: Cells,
        row: list[BlockHandle | None],
        table: KvTable,
        request: RequestId,
        n_tokens: int,
    ) -> None:
        for token in range(n_tokens):
            cells = memory[self._cells_of(memory, row, table, token)]
            assert cells == [self._truth(request, token)] * len(cells), (
                f"token {token} of {request} is damaged"
            )

    def snapshot(self) -> object:
        """Everything that a refused plan must leave as it was."""
        instance, ledger = self.instance, self.ledger
        return (
            {r: (q.need, q.in_step, q.in_copy, q.to_end, q.n_tokens) for r, q in instance.requests.items()},
            {r: (t.n_computed, t.n_clean, t.n_missing, *t.device, *t.host) for r, t in ledger.kv.items()},
            {
                m: (s.stage, s.is_moving, s.wanted, s.pinned, s.stepped_since_load)
                for m, s in instance.models.items()
            },
            list(instance.resident_models),
            list(instance.live_models),
            {c: instance.in_flight(c) for c in Channel},
            {
                (h, ledger.arena.offset(h), ledger.arena.size(h))
                for h in {*ledger.arena.handles} - ledger.blocks.idle_extents
            },
            {
                (h, ledger.host_arena.offset(h))
                for h in {*ledger.host_arena.handles} - ledger.host_blocks.idle_extents
            },
            *(blocks.used_bytes - blocks.idle_bytes for blocks in (ledger.blocks, ledger.host_blocks)),
            ledger.arena.frozen,
            (ledger.cache.cached, ledger.cache.held, ledger.cache.fetching),
            instance.metrics.n_discards,
        )


def at(event: Event, now_s: float) -> Event:
    """The same event at another time."""
    return replace(event, at_s=now_s)
