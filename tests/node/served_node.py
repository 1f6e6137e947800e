"""A node and its executors on real (small) models, in the test's thread."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.core.pooling import PooledRows
from tokenmux.core.request import RequestId
from tokenmux.core.sampling import LogProbabilities
from tokenmux.messages.commands import Command, Register
from tokenmux.messages.reports import (
    Acknowledged,
    Broken,
    Finished,
    PromptPooled,
    PromptTold,
    Report,
    Tokens,
)
from tokenmux.messages.setups import DeviceSetup, NodeSetup, PagedKv
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.testing.driven_node import DrivenNode

KB = 1 << 10
SLAB_BYTES = 64 * KB
GRID = 32


class Served:
    """A node in the test's thread, so that the test can look into its books."""

    def __init__(self, setup: NodeSetup) -> None:
        self.driven = DrivenNode(setup)
        self.tokens: dict[RequestId, list[int]] = {}
        self.n_cached: dict[RequestId, int] = {}
        """Tokens of the prompts that requests with output were given."""
        self.pooled: dict[RequestId, list[PooledRows]] = {}
        self.told: dict[RequestId, list[LogProbabilities]] = {}
        self.ends: dict[RequestId, Finished] = {}
        self._unread: deque[Report] = deque()

    @property
    def instance(self) -> Instance:
        """That of the first device."""
        return self.driven.instance

    def send(self, message: Command) -> None:
        self.driven.tell(message)

    def next(self) -> Report:
        while not self._unread:
            if not self.driven.said:
                self.driven.turn()
            self._unread += self.driven.said
            self.driven.said.clear()
        message = self._unread.popleft()
        match message:
            case Tokens(request, index, token_ids):
                output = self.tokens.setdefault(request, [])
                assert index == len(output)
                output.extend(token_ids)
                self.n_cached[request] = self.n_cached.get(request, 0) + message.n_cached
            case PromptTold(request, index, log_probabilities):
                told = self.told.setdefault(request, [])
                assert index == len(told) + 1
                told.extend(log_probabilities)
            case PromptPooled(request, rows):
                self.pooled.setdefault(request, []).append(rows)
            case Finished(request):
                assert request not in self.ends, "a request ended twice"
                self.ends[request] = message
            case Broken(detail):
                raise AssertionError(detail)
        return message

    def until(self, met: Callable[[Report], bool]) -> Report:
        while not met(message := self.next()):
            pass
        return message

    def until_ended(self, n: int) -> None:
        while len(self.ends) < n:
            self.next()

    def check_books(self) -> None:
        """Everything is over, and nothing is left but what the prefix cache keeps."""
        self.driven.node.pool.check_integrity()
        for instance in self.driven.node.pool.instances:
            assert not instance.requests
            for blocks in (instance.ledger.blocks, instance.ledger.host_blocks):
                assert blocks.used_bytes == blocks.idle_bytes


def tiny_entries(root: Path, families: Mapping[str, torch.dtype]) -> list[Entry]:
    """A small model of each family, in the catalogue at `root`."""
    catalogue = Catalogue(root)
    return [
        catalogue.register_folder(family, tiny.create(family, root / "checkpoints" / family, dtype=dtype))
        for family, dtype in families.items()
    ]


@contextmanager
def served(
    entries: list[Entry],
    *devices: DeviceFacts,
    kind: DeviceKind = "cpu",
    paged_kv: PagedKv = "exact",
    prefix_cache: bool = False,
) -> Iterator[Served]:
    """A node that knows the entries."""
    host = HostFacts(cache_bytes=64 << 20, fetch_bytes_per_s=1e9)
    setups = tuple(DeviceSetup(facts, kind, paged_kv=paged_kv) for facts in devices)
    host_kv_bytes = sum(facts.host_kv_bytes for facts in devices)
    body = Served(NodeSetup(setups, host, host_kv_bytes, prefix_cache=prefix_cache))
    try:
        for entry in entries:
            body.send(Register(entry.facts, str(entry.path)))
            answer = body.until(lambda message: isinstance(message, Acknowledged))
            assert isinstance(answer, Acknowledged)
            assert not answer.error
        yield body
    finally:
        body.driven.close()


def device(
    entries: list[Entry], n_slabs: int, host_kv_bytes: int = 4096 * KB, cell_tokens: int | None = None
) -> DeviceFacts:
    """Room for the largest model and `n_slabs` slabs of KV."""
    return DeviceFacts(
        name="cpu",
        arena_bytes=max(entry.facts.n_bytes for entry in entries) + n_slabs * SLAB_BYTES,
        host_kv_bytes=host_kv_bytes,
        copy_in_bytes_per_s=1e10,
        copy_out_bytes_per_s=1e10,
        memory_bytes_per_s=1e10,
        flops_per_s=1e11,
        slab_bytes=SLAB_BYTES,
        prefill_chunk_tokens=GRID,
        prompt_cell_tokens=cell_tokens,
    )
