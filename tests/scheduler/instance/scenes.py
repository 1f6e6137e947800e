"""Small worlds for tests of one instance: three models, of which the arena holds one beside two slabs of
KV."""

from tests.scheduler.instance.body import Body, device_facts
from tokenmux.core.event import Arrived, ModelAdded
from tokenmux.core.facts import KvShape, ModelFacts
from tokenmux.core.plan import Activate, Channel, Chunk, Drop, Fetch, PageOut, Plan, Step
from tokenmux.core.request import Request, RequestId
from tokenmux.testing import make_model

SHAPE = KvShape(1, 1, 4, 2, 4)
SLAB = 512


A, B, C = (
    make_model(name, images=image)
    for name, image in (("A", {"a": 768}), ("B", {"b": 768}), ("C", {"c": 2000}))
)
ADAPTED = make_model("adapted", images={"a": 768, "adapter": 256})


def a_body(*models: ModelFacts, arena_bytes: int = 768 + 2 * SLAB, host_kv_bytes: int = SLAB) -> Body:
    body = Body(device_facts(arena_bytes, host_kv_bytes, SLAB), cache_bytes=1600)
    for facts in models:
        body.apply(ModelAdded(0.0, facts))
    return body


def arrive(
    body: Body, name: str, facts: ModelFacts = A, n_prompt: int = 12, max_tokens: int = 8
) -> RequestId:
    body.apply(Arrived(body.now_s, Request(RequestId(name), facts.id, n_prompt, max_tokens, body.now_s)))
    return RequestId(name)


def load(body: Body, facts: ModelFacts = A) -> None:
    for channel, operation in ((Channel.FETCH, Fetch(facts.id)), (Channel.COPY_IN, Activate(facts.id))):
        body.plan(channel, Plan(operation))
        body.complete(channel)


def step(body: Body, *chunks: Chunk, repeat: int = 1) -> None:
    body.plan(Channel.COMPUTE, Plan(Step(A.id, chunks, repeat)))
    body.complete(Channel.COMPUTE)


def running() -> Body:
    """A is resident; r has its prompt computed and one token drawn, s has computed nothing."""
    body = a_body(A, B, C)
    r = arrive(body, "r")
    arrive(body, "s")
    load(body)
    step(body, Chunk(r, 0, 8))
    step(body, Chunk(r, 8, 4))
    return body


def paged_out() -> Body:
    """As `running`, with r's KV on the host only."""
    body = running()
    body.plan(Channel.COPY_OUT, Plan(PageOut((R,))))
    body.complete(Channel.COPY_OUT)
    body.plan(Channel.COPY_IN, Plan(at_once=(Drop(R),)))
    return body


R, S, NOBODY = RequestId("r"), RequestId("s"), RequestId("nobody")
NEXT = Chunk(R, 12, 1)
