"""Each rule that a plan can break, by example: it is refused with its reason, and nothing has changed."""

from collections.abc import Callable

import pytest

from tests.scheduler.instance.body import Body, device_facts
from tests.scheduler.instance.scenes import (
    NEXT,
    NOBODY,
    SLAB,
    A,
    B,
    C,
    R,
    S,
    a_body,
    arrive,
    load,
    paged_out,
    running,
    step,
)
from tokenmux.core.errors import IllegalPlan
from tokenmux.core.event import Cancelled, Event, ModelAdded, ModelWanted, Paused
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.plan import (
    Activate,
    Channel,
    Chunk,
    Compact,
    Discard,
    Drop,
    Evict,
    Fetch,
    PageIn,
    PageOut,
    Plan,
    Step,
)


def in_flight(channel: Channel, plan: Plan, before: Callable[[], Body] = running) -> Callable[[], Body]:
    def make() -> Body:
        body = before()
        body.plan(channel, plan)
        return body

    return make


def after(event: Event, before: Callable[[], Body] = running) -> Callable[[], Body]:
    def make() -> Body:
        body = before()
        body.apply(event)
        return body

    return make


def without_host_room() -> Body:
    body = a_body(A, host_kv_bytes=0)
    arrive(body, "r")
    load(body)
    step(body, Chunk(R, 0, 8))
    return body


def full() -> Body:
    """Two requests of A hold KV; the arena has one slab of 7 blocks left for both."""
    body = a_body(A, arena_bytes=768 + SLAB)
    for name in "rs":
        arrive(body, name, n_prompt=8, max_tokens=30)
    load(body)
    step(body, Chunk(R, 0, 8), Chunk(S, 0, 8))
    return body


stepping = in_flight(Channel.COMPUTE, Plan(Step(A.id, (NEXT,))))
paging_out = in_flight(Channel.COPY_OUT, Plan(PageOut((R,))))
paging_in = in_flight(Channel.COPY_IN, Plan(PageIn((R,))), before=paged_out)
compute, copy_in, copy_out, fetch = Channel.COMPUTE, Channel.COPY_IN, Channel.COPY_OUT, Channel.FETCH


def a_step(*chunks: Chunk, repeat: int = 1, of: ModelFacts = A) -> Plan:
    return Plan(Step(of.id, chunks, repeat))


RULES: list[tuple[str, Callable[[], Body], Channel, Plan]] = [
    # steps
    ("planned for the COPY_OUT channel", running, copy_out, a_step(NEXT)),
    ("not usable", running, compute, a_step(NEXT, of=B)),
    ("no model nothing", running, compute, Plan(Step(ModelId("nothing"), (NEXT,)))),
    ("no chunks", running, compute, a_step()),
    ("no chunks", running, compute, a_step(NEXT, repeat=0)),
    ("a request twice", running, compute, a_step(NEXT, NEXT)),
    ("not a runnable request", running, compute, a_step(Chunk(NOBODY, 0, 1))),
    ("not a runnable request", after(Paused(1.0, R)), compute, a_step(NEXT)),
    ("does not continue", running, compute, a_step(Chunk(R, 11, 1))),
    ("does not continue", running, compute, a_step(Chunk(R, 12, 2))),
    ("does not continue", paged_out, compute, a_step(NEXT)),
    ("prefill grid", running, compute, a_step(Chunk(S, 0, 5))),
    ("prefill grid", running, compute, a_step(Chunk(S, 0, 0))),
    ("cannot be repeated", running, compute, a_step(NEXT, repeat=8)),
    ("cannot be repeated", running, compute, a_step(Chunk(S, 0, 8), repeat=2)),
    ("no room for the KV", full, compute, a_step(Chunk(R, 8, 1), Chunk(S, 8, 1), repeat=9)),
    # weights
    ("already resident", running, copy_in, Plan(Activate(A.id))),
    ("not in the host cache", running, copy_in, Plan(Activate(B.id))),
    ("no place in the arena", lambda: fetched(C), copy_in, Plan(Activate(C.id))),
    ("need not be fetched", running, fetch, Plan(Fetch(A.id))),
    ("no room for C", running, fetch, Plan(Fetch(C.id))),
    ("not resident", running, copy_in, Plan(at_once=(Evict(B.id),))),
    ("no model nothing", running, copy_in, Plan(at_once=(Evict(ModelId("nothing")),))),
    ("in use by an operation in flight", stepping, copy_in, Plan(at_once=(Evict(A.id),))),
    ("is pinned", after(ModelWanted(1.0, A.id, pinned=True)), copy_in, Plan(at_once=(Evict(A.id),))),
    ("no moves make", running, copy_in, Plan(Compact(64))),
    ("no moves make", running, copy_in, Plan(Compact(5000))),
    # KV
    ("no request nobody", running, copy_in, Plan(PageIn((NOBODY,)))),
    ("nothing to page in", running, copy_in, Plan(PageIn((R,)))),
    ("paging of no request", running, copy_in, Plan(PageIn(()))),
    ("or of one twice", paged_out, copy_in, Plan(PageIn((R, R)))),
    ("already being copied", paging_in, copy_out, Plan(PageOut((R,)))),
    ("already being copied", paging_out, copy_in, Plan(PageIn((R,)))),
    ("nothing to page out", paged_out, copy_out, Plan(PageOut((R,)))),
    ("nothing to page out", running, copy_out, Plan(PageOut((S,)))),
    ("no room on the host", without_host_room, copy_out, Plan(PageOut((R,)))),
    ("over", after(Cancelled(1.0, R), stepping), copy_out, Plan(PageOut((R,)))),
    ("only the device holds", running, copy_in, Plan(at_once=(Drop(R),))),
    ("no KV to forget", paged_out, copy_in, Plan(at_once=(Drop(R),))),
    ("no KV to forget", running, copy_in, Plan(at_once=(Discard(S),))),
    ("in use by an operation in flight", stepping, copy_in, Plan(at_once=(Discard(R),))),
    ("in use by an operation in flight", paging_out, copy_in, Plan(at_once=(Discard(R),))),
]


def fetched(facts: ModelFacts) -> Body:
    body = Body(device_facts(768, 0, SLAB), cache_bytes=4000)
    body.apply(ModelAdded(0.0, facts))
    body.plan(fetch, Plan(Fetch(facts.id)))
    body.complete(fetch)
    return body


@pytest.mark.parametrize(
    ("reason", "before", "channel", "plan"), RULES, ids=[f"{r[0]}-{r[3]}" for r in RULES]
)
def test_refused(reason: str, before: Callable[[], Body], channel: Channel, plan: Plan) -> None:
    body = before()
    state = body.snapshot()
    with pytest.raises(IllegalPlan, match=reason):
        body.plan(channel, plan)
    assert body.snapshot() == state
    body.check()
