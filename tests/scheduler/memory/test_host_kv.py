"""Host KV that instances share: what is parked is handed over as it is, and every block has one owner."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.instance.body import device_facts
from tokenmux.core.errors import IntegrityError
from tokenmux.core.facts import KvShape
from tokenmux.core.request import RequestId
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.memory.ledger import Ledger

SHAPE = KvShape(n_layers=1, n_kv_heads=1, head_dim=4, dtype_bytes=2, block_size=4)
OTHER = KvShape(n_layers=1, n_kv_heads=2, head_dim=4, dtype_bytes=2, block_size=4)
R = RequestId("r")


class Host:
    """Two instances that share host KV."""

    def __init__(self, host_kv_bytes: int = 4096) -> None:
        self.host_kv = HostKv(host_kv_bytes, slab_bytes=512)
        cache = HostCache(0)
        self.ledgers = [Ledger(device_facts(8192, 0), cache, self.host_kv) for _ in range(2)]

    def page_out(
        self, ledger: Ledger, request: RequestId, n_tokens: int, shape: KvShape = SHAPE
    ) -> list[int]:
        """Give a request KV of `n_tokens`, on the device and the host. Returns the blocks of the host."""
        table = ledger.open(request, shape)
        ledger.grow(table, n_tokens)
        table.n_computed = n_tokens
        ledger.begin_page_out(request)
        ledger.end_page_out(request, n_tokens, ok=True)
        return [self.host_kv.blocks.block_index(handle) for handle in table.host if handle is not None]

    def check(self) -> None:
        for ledger in self.ledgers:
            ledger.check_integrity()


def test_kv_goes_from_one_instance_to_another_without_moving() -> None:
    host = Host()
    first, second = host.ledgers
    blocks = host.page_out(first, R, 10)
    first.park(R)
    host.check()
    assert first.blocks.used_bytes == 0
    second.open(R, SHAPE)
    second.adopt(R, 10)
    host.check()
    table = second.kv[R]
    assert [host.host_kv.blocks.block_index(h) for h in table.host if h is not None] == blocks
    assert (table.n_computed, table.n_clean, table.n_missing) == (10, 10, 3)
    assert not host.host_kv.parked


def test_what_the_host_lacks_is_not_parked() -> None:
    host = Host()
    ledger = host.ledgers[0]
    host.page_out(ledger, R, 6)
    table = ledger.kv[R]
    ledger.grow(table, 20)
    table.n_computed = 20
    ledger.begin_page_out(R)
    ledger.park(R)
    host.check()
    assert host.host_kv.parked[R].n_tokens == 6
    assert host.host_kv.blocks.used_bytes == 2 * SHAPE.block_bytes, "blocks of a copy in flight stayed"


def test_a_request_without_kv_on_the_host_parks_nothing() -> None:
    host = Host()
    host.ledgers[0].open(R, SHAPE)
    host.ledgers[0].park(R)
    assert not host.host_kv.parked


@pytest.mark.parametrize(("shape", "n_tokens", "n_blocks"), [(SHAPE, 8, 2), (OTHER, 10, 0), (SHAPE, 11, 0)])
def test_what_is_not_taken_is_freed(shape: KvShape, n_tokens: int, n_blocks: int) -> None:
    host = Host()
    first, second = host.ledgers
    host.page_out(first, R, 10)
    first.park(R)
    second.open(R, shape)
    second.adopt(R, n_tokens)
    host.check()
    assert host.host_kv.blocks.used_bytes == n_blocks * SHAPE.block_bytes
    assert second.kv[R].n_computed == (n_tokens if n_blocks else 0)


def test_parked_kv_can_be_forgotten_and_is_parked_once() -> None:
    host = Host()
    host.page_out(host.ledgers[0], R, 10)
    host.page_out(host.ledgers[1], R, 4)
    host.ledgers[0].park(R)
    with pytest.raises(IntegrityError, match="r is parked twice"):
        host.ledgers[1].park(R)
    host = Host()
    host.page_out(host.ledgers[0], R, 10)
    host.ledgers[0].park(R)
    host.host_kv.forget(R)
    host.host_kv.forget(R)
    assert not host.host_kv.blocks.used_bytes
    host.check()


def test_an_instance_that_leaves_keeps_nothing() -> None:
    host = Host()
    host.page_out(host.ledgers[0], R, 10)
    with pytest.raises(IntegrityError, match="leaves and keeps blocks"):
        host.ledgers[0].retire()
    host.ledgers[0].park(R)
    host.ledgers[0].retire()
    host.ledgers[1].check_integrity()


def test_books_that_do_not_balance_show_on_every_instance() -> None:
    for ledger in range(2):
        host = Host()
        host.page_out(host.ledgers[0], R, 10)
        host.ledgers[0].kv[R].host[0] = None
        with pytest.raises(IntegrityError, match="1 blocks leaked"):
            host.ledgers[ledger].check_integrity()
    host = Host()
    host.page_out(host.ledgers[0], R, 10)
    host.host_kv.arena.allocate_slot(512)
    with pytest.raises(IntegrityError, match="an extent has no owner"):
        host.ledgers[1].check_integrity()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whoever_pages_parks_takes_and_forgets_every_block_has_one_owner(data: st.DataObject) -> None:
    host = Host(data.draw(st.sampled_from((0, 512, 1024, 4096))))
    shapes = {RequestId(f"r{i}"): (SHAPE, OTHER)[i % 2] for i in range(5)}
    for _ in range(30):
        request = data.draw(st.sampled_from(sorted(shapes)))
        ledger = next((ledger for ledger in host.ledgers if request in ledger.kv), None)
        if ledger is None:
            ledger = data.draw(st.sampled_from(host.ledgers))
            parked = host.host_kv.parked.get(request)
            ledger.open(request, shapes[request])
            if parked is not None:
                ledger.adopt(request, data.draw(st.integers(1, parked.n_tokens)))
            continue
        table = ledger.kv[request]
        match data.draw(st.sampled_from(("grow", "page out", "fail", "drop", "park", "close", "discard"))):
            case "grow" if table.on_device and ledger.can_grow([(table, table.n_computed + 3)]):
                ledger.grow(table, table.n_computed + 3)
                table.n_computed += 3
            case ("page out" | "fail") as how if table.on_device and ledger.can_page_out(table):
                ledger.begin_page_out(request)
                ledger.end_page_out(request, table.n_computed, ok=how == "page out")
            case "drop" if table.is_clean:
                ledger.drop(request)
            case "park":
                ledger.park(request)
            case "close":
                ledger.close(request)
            case "discard":
                ledger.discard(request)
            case _:
                pass
        host.check()
    for ledger in host.ledgers:
        for request in list(ledger.kv):
            ledger.close(request)
        ledger.retire()
    for request in list(host.host_kv.parked):
        host.host_kv.forget(request)
    assert not host.host_kv.arena.used_bytes
