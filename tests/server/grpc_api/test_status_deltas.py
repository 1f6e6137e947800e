"""Long lists come in pages, and a watcher of the status gets what has changed."""

from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from tests.server.harness import Served, serving
from tests.server.sample_reports import node_status
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.client import AsyncClient
from tokenmux.client.watched_status import WatchedStatus
from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.list_pages import MAX_PAGE, page_of
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.front.usage import Usage
from tokenmux.server.grpc_api import status_deltas
from tokenmux.server.grpc_api.status_deltas import StatusDeltas
from tokenmux.v1 import models_pb2, pool_pb2

NAMES = ("alpha", "beta", "gamma", "letters")


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(*(FakeEntry(facts(name)) for name in NAMES)) as running:
        yield running


def pages(items: list[str], size: int, filter: str = "") -> list[list[str]]:
    found, token = [], ""
    while True:
        page, token = page_of(items, str, size=size, token=token, filter=filter)
        found.append([*page])
        if not token:
            return found


def test_pages_have_every_item_once() -> None:
    items = [f"m{i:04}" for i in range(2500)]
    assert [len(page) for page in pages(items, 0)] == [MAX_PAGE, MAX_PAGE, 500]
    assert [item for page in pages(items, 7) for item in page] == items
    assert pages([], 5) == [[]]
    assert pages(["a", "b"], 2) == [["a", "b"]]
    assert pages(items, 2, filter="M00") == [[f"m{i:04}", f"m{i + 1:04}"] for i in range(0, 100, 2)]


def test_what_is_removed_meanwhile_makes_no_other_be_left_out() -> None:
    _, token = page_of(["a", "b", "c"], str, size=2, token="", filter="")
    assert page_of(["a", "c", "d"], str, size=2, token=token, filter="") == (["c", "d"], "")


@pytest.mark.parametrize(
    "wrong",
    [{"size": 1001}, {"size": -1}, {"token": "ä"}, {"token": "!"}, {"token": "_w=="}, {"filter": "x" * 129}],
)
def test_wrong_pages_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"page_size|page_token|filter"):
        page_of(["a"], str, **{"size": 0, "token": "", "filter": "", **wrong})


async def test_models_come_in_pages_and_in_short(served: Served) -> None:
    served.hub.post(node_status("letters"))
    first = await served.models.ListModels(models_pb2.ListModelsRequest(page_size=3))
    second = await served.models.ListModels(
        models_pb2.ListModelsRequest(page_size=3, page_token=first.next_page_token)
    )
    assert [model.name for model in (*first.models, *second.models)] == [*NAMES]
    assert second.next_page_token == ""
    short = models_pb2.ListModelsRequest(view=models_pb2.VIEW_BASIC, filter="LETT")
    (model,) = (await served.models.ListModels(short)).models
    assert (model.name, model.max_context > 0, model.weight_bytes) == ("letters", True, 0)


async def test_the_status_comes_in_pages_and_in_short(served: Served) -> None:
    served.hub.post(node_status("letters"))
    page = await served.pool.GetStatus(pool_pb2.GetStatusRequest(page_size=1))
    assert ([model.name for model in page.status.models], page.next_page_token != "") == (["alpha"], True)
    short = await served.pool.GetStatus(pool_pb2.GetStatusRequest(view=models_pb2.VIEW_BASIC))
    assert (len(short.status.models), len(short.status.instances)) == (0, 1)


async def test_both_lists_of_the_client_are_whole(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenmux.server.front.list_pages.MAX_PAGE", 2)
    async with AsyncClient(served.target) as client:
        assert [model.name for model in await client.models.list()] == [*NAMES]
        assert [model.name for model in (await client.pool.status()).models] == [*NAMES]


async def test_a_watcher_gets_what_changed_and_the_client_puts_it_together(served: Served) -> None:
    call = served.pool.WatchStatus(pool_pb2.WatchStatusRequest())
    first = await call.read()
    assert (first.whole, [model.name for model in first.status.models]) == (True, [*NAMES])
    served.hub.post(node_status("letters"))
    second = await call.read()
    assert (second.whole, [model.name for model in second.status.models]) == (False, ["letters"])
    assert second.version > first.version
    await served.models.UnregisterModel(models_pb2.UnregisterModelRequest(name="beta"))
    third = await call.read()
    while not third.removed_models:
        third = await call.read()
    assert ([*third.removed_models], [*third.status.models]) == (["beta"], [])
    watched = WatchedStatus()
    for message in (first, second, third):
        status = watched.take(message)
    assert [model.name for model in status.models] == ["alpha", "gamma", "letters"]
    async with AsyncClient(served.target) as client:
        async for now in client.pool.watch():
            assert now.models == status.models
            assert now.instances == status.instances
            break


async def test_a_wrong_token_is_the_callers_mistake(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="page_token"):
        await served.models.ListModels(models_pb2.ListModelsRequest(page_token="!"))


def snapshot(*names: str) -> PoolSnapshot:
    models = tuple(ShownModel(name, None, False, "", None, None) for name in names)
    return PoolSnapshot("1", 0.0, 0, 0, 0, None, Usage(), models)


def test_a_model_is_converted_when_it_changes_and_for_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    make = status_deltas.model_message
    counting = SimpleNamespace(make=lambda view: (converted.append(view.name), make(view))[1])
    monkeypatch.setattr(status_deltas, "model_message", counting.make)
    deltas = StatusDeltas()
    now = snapshot("a", "b", "c")
    deltas.take(now)
    deltas.take(now)
    assert (deltas.version, converted) == (1, ["a", "b", "c"])
    changed = replace(now, models=(now.models[0], replace(now.models[1], pinned=True), now.models[2]))
    deltas.take(changed)
    assert converted == ["a", "b", "c", "b"]
    assert [model.name for model in deltas.since(1, basic=False).status.models] == ["b"]
    assert deltas.since(1, basic=False) is deltas.since(1, basic=False)
    deltas.take(snapshot("c"))
    late = deltas.since(1, basic=False)
    assert ([*late.removed_models], late.whole) == (["a", "b"], False)
    deltas.take(snapshot("a", "c"))
    assert [*deltas.since(1, basic=False).removed_models] == ["b"]


def test_who_has_missed_too_many_removals_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_deltas, "REMEMBERED_REMOVALS", 3)
    deltas = StatusDeltas()
    deltas.take(snapshot("a", "b", "c", "d", "e"))
    deltas.take(snapshot("a", "b"))
    assert not deltas.since(2, basic=False).whole
    deltas.take(snapshot("a"))
    assert deltas.since(1, basic=False).whole
    assert not deltas.since(2, basic=False).whole
    assert [model.name for model in deltas.since(1, basic=False).status.models] == ["a"]
