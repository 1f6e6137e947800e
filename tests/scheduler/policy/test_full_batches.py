"""Steps are as full as they can be: prompts ride along with rows, KV that is back joins a burst, and KV
leaves that is needed last."""

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.workloads import steady
from tokenmux.core.effects import Effects, decisions
from tokenmux.core.event import CopyDone
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Chunk, Drop, Evict, PageIn, Step
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.policy import eviction
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.scenario import Hardware, paper_market, simulate
from tokenmux.workload.trace import Arrival

M = ModelId("m")
FIRST, SECOND = RequestId("first"), RequestId("second")
COPY_DONE = CopyDone(1.0, 7)


def prompt_chunks(hardware: Hardware) -> dict[RequestId, list[int]]:
    """The pieces in which two prompts of 700 tokens are computed, the second beside the first one's rows."""
    found: dict[RequestId, list[int]] = {FIRST: [], SECOND: []}

    def note(_index: int, _at_s: float, effects: Effects) -> None:
        for decided in decisions(effects):
            for chunk in decided.chunks if isinstance(decided, Step) else ():
                if chunk.start < 700:
                    found[chunk.request].append(chunk.n_tokens)

    coming = [
        Arrival(Request(request, M, 700, 400, at_s), n_output=400)
        for request, at_s in ((FIRST, 0.0), (SECOND, 2.0))
    ]
    simulate(paper_market(["m"]), coming, 1, hardware=hardware, on_effects=note)
    return found


def test_a_prompt_rides_along_in_pieces() -> None:
    assert prompt_chunks(Hardware()) == {FIRST: [700], SECOND: [256, 256, 188]}


@pytest.mark.parametrize("hardware", [Hardware(cut_tokens=2048), Hardware("H20")])
def test_a_prompt_stays_whole_where_no_piece_is_free(hardware: Hardware) -> None:
    """Where the device cannot cut it, or where arithmetic is as dear as reading the weights."""
    assert prompt_chunks(hardware) == {FIRST: [700], SECOND: [700]}


def a_request(name: str, due_s: float) -> Any:
    facts = SimpleNamespace(id=RequestId(name), model=ModelId(name[0]))
    return SimpleNamespace(
        request=facts,
        due_s=due_s,
        is_paused=False,
        is_clean=True,
        device_bytes=1,
        in_step=False,
        in_copy=False,
    )


def test_kv_comes_back_before_the_weights_that_it_waits_for() -> None:
    """Its first steps would go on without the requests whose KV comes later."""
    market, coming = steady(7, 0.457, 60.0)
    models = {arrival.request.id: arrival.request.model for arrival in coming}
    resident: set[ModelId] = set()
    n_paged_in = {"before the weights": 0, "after the weights": 0}

    def note(_index: int, _at_s: float, effects: Effects) -> None:
        for decided in decisions(effects):
            match decided:
                case Activate(model):
                    resident.add(model)
                case Evict(model):
                    resident.discard(model)
                case PageIn((request,)):
                    is_late = models[request] in resident
                    n_paged_in["after the weights" if is_late else "before the weights"] += 1

    simulate(market, coming, 1, on_effects=note)
    assert n_paged_in["before the weights"] > 5 * n_paged_in["after the weights"]


@pytest.mark.parametrize(("n_decoding", "ends"), [(1, False), (2, True)])
def test_a_burst_ends_for_kv_that_has_come_back(n_decoding: int, ends: bool) -> None:
    decoding = {RequestId(f"r{i}"): object() for i in range(n_decoding)}
    model = SimpleNamespace(decoding=decoding, waiting={}, is_moving=True)
    view: Any = SimpleNamespace(models={M: model}, resident_models={}, in_flight=lambda channel: None)
    burst = Step(M, (Chunk(RequestId("r0"), 9, 1),), 16)
    assert SlackPolicy().interrupts(burst, COPY_DONE, view) is ends


def test_the_kv_goes_whose_model_steps_last() -> None:
    """Though a request of the other model can wait longer: it will step when its neighbour is due."""

    def model(*requests: Any) -> Any:
        return SimpleNamespace(
            waiting={},
            decoding={r.request.id: r for r in requests},
            away={},
            paused={},
            residency=Residency.HOST,
            due_s=min(r.due_s for r in requests),
        )

    soon = model(a_request("a1", 1.0), a_request("a2", 9.0))
    later = model(a_request("b1", 5.0), a_request("b2", 6.0))
    models = {ModelId("a"): soon, ModelId("b"): later}
    view: Any = SimpleNamespace(models=models, live_models=models)
    keep: Any = SimpleNamespace()
    assert eviction.droppable_kv(view, keep) == Drop(RequestId("b2"))
    assert eviction.droppable_kv(view, keep, later_than_s=5.0) is None
