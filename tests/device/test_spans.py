"""From indices to spans: every byte once, neighbours together, and moves that are a memmove."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.device.launching import paged_blocks
from tokenmux.core.facts import DeviceFacts, KvShape, ModelId
from tokenmux.core.handles import Transfer
from tokenmux.core.request import RequestId
from tokenmux.device.spans import PagingSpan, block_spans, move_pieces, paging_spans
from tokenmux.messages.launches import ArenaMove
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.ledger import Ledger

SHAPE = KvShape(n_layers=1, n_kv_heads=1, head_dim=8, dtype_bytes=1, block_size=4)
SIZE = SHAPE.block_bytes


def ledger_with(*n_tokens: int) -> Ledger:
    """Requests r0, r1, ... that have grown in turn, block by block, and lie on the host as well."""
    facts = DeviceFacts("small", 64 * SIZE, 64 * SIZE, 1.0, 1.0, 1.0, 1.0, slab_bytes=16 * SIZE)
    ledger = Ledger(facts, HostCache(0))
    for index in range(len(n_tokens)):
        ledger.open(RequestId(f"r{index}"), SHAPE)
    for end in range(1, max(n_tokens) + 1):
        for index, n in enumerate(n_tokens):
            if end <= n:
                table = ledger.kv[RequestId(f"r{index}")]
                ledger.grow(table, end)
                table.n_computed = end
    return ledger


def spans_of(ledger: Ledger, transfers: tuple[Transfer, ...]) -> list[PagingSpan]:
    return paging_spans(paged_blocks(ModelId("a"), transfers, ledger), SIZE)


def test_blocks_that_came_one_by_one_beside_nobody_are_one_copy() -> None:
    ledger = ledger_with(32)
    transfers = ledger.begin_page_out(RequestId("r0"))
    assert sum(span.n_bytes for span in spans_of(ledger, transfers)) == 8 * SIZE
    ledger.end_page_out(RequestId("r0"), 32, ok=True)
    ledger.drop(RequestId("r0"))
    (span,) = spans_of(ledger, ledger.begin_page_in(RequestId("r0")))
    assert span.n_bytes == 8 * SIZE, "allocated at once on both sides"


def test_spans_hold_every_block_once_where_requests_have_grown_between_each_other() -> None:
    ledger = ledger_with(30, 20)
    transfers = ledger.begin_page_out(RequestId("r0"))
    pairs = {
        (ledger.blocks.block_index(t.device) * SIZE, ledger.host_blocks.block_index(t.host) * SIZE)
        for t in transfers
    }
    found = [
        (span.device + start, span.host + start)
        for span in spans_of(ledger, transfers)
        for start in range(0, span.n_bytes, SIZE)
    ]
    assert len(found) == len(set(found))
    assert set(found) == pairs


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=4), st.integers(1, 9))
def test_block_spans_are_sorted_disjoint_and_hold_every_block(indices: list[list[int]], size: int) -> None:
    spans = block_spans(indices, size)
    held = [byte for start, end in spans for byte in range(start, end)]
    assert held == sorted(set(held))
    assert set(held) == {i * size + byte for some in indices for i in some for byte in range(size)}
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans)), "neighbours are together"


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 20))
def test_the_pieces_of_a_move_in_order_are_a_memmove(
    source: int, target: int, n_bytes: int, chunk: int
) -> None:
    assume(source != target)
    memory = list(range(100))
    expected = memory.copy()
    expected[target : target + n_bytes] = memory[source : source + n_bytes]
    for piece in move_pieces(ArenaMove(source, target, n_bytes), chunk):
        overlap = abs(piece.source - piece.target) < piece.n_bytes
        assert piece.aside == overlap
        assert piece.n_bytes <= chunk or not overlap
        memory[piece.target : piece.target + piece.n_bytes] = memory[
            piece.source : piece.source + piece.n_bytes
        ]
    assert memory == expected


@pytest.mark.parametrize(("source", "aside"), [(10, True), (1000, False)])
def test_only_a_move_over_itself_goes_aside(source: int, aside: bool) -> None:
    pieces = move_pieces(ArenaMove(source, 0, 100), 50)
    assert any(piece.aside for piece in pieces) == aside
    assert len(pieces) == (2 if aside else 1)
