"""What a node tells of the prefix cache is what it did not compute, whatever happened to the request."""

import random
from collections import defaultdict
from dataclasses import replace

import pytest

from tests.node.scenes import GB, SHAPE, A
from tokenmux.core.effects import Effects, PrefixTaken
from tokenmux.core.facts import DeviceFacts, ModelId
from tokenmux.core.plan import Chunk, Step
from tokenmux.core.prefix import Prefix
from tokenmux.core.request import Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.core.started import StartedStep
from tokenmux.messages.commands import Cancel, Register, Submit
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.node.given_prompts import GivenPrompts
from tokenmux.testing import make_model, make_request
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

CELL = 64
R = RequestId("r")
KEYS = Prefix(ModelId("m"), CELL, ())


N_PROMPT = 100


def asking(prefix: Prefix | None) -> Request:
    return replace(make_request("r", "m", n_prompt=N_PROMPT), prefix=prefix)


def given(*chunks: tuple[int, int]) -> int:
    """What a request counts as given, for which steps computed these chunks."""
    prompts = GivenPrompts()
    prompts.arrived(asking(KEYS))
    for start, n_tokens in chunks:
        prompts.started(Step(ModelId("m"), (Chunk(R, start, n_tokens),)))
    first = prompts.taken(R, N_PROMPT)
    assert prompts.taken(R, N_PROMPT) == 0, "told once"
    return first


@pytest.mark.parametrize(
    ("chunks", "n_given"),
    [
        ([(0, 100)], 0),
        ([(64, 36)], 64),
        ([(0, 32), (64, 36)], 32),
        ([(0, 64), (64, 36)], 0),
        ([(0, 64), (32, 32), (64, 36)], 0),
        ([(0, 64), (32, 68)], 0),
        ([(64, 32), (96, 10)], 64),
    ],
    ids=str,
)
def test_only_what_no_step_computed_was_given(chunks: list[tuple[int, int]], n_given: int) -> None:
    """Some lost KV and computed it again, or took what they had computed before; the last one brought tokens
    of its output along."""
    assert given(*chunks) == n_given


def test_requests_that_cannot_be_given_anything_are_not_followed() -> None:
    prompts = GivenPrompts()
    for prefix in (None, Prefix(ModelId("m"), CELL, (), reads=False)):
        prompts.arrived(asking(prefix))
        assert prompts.taken(R, N_PROMPT) == 0


class Watched(NodeOnVirtualTime):
    """A node that notes which positions of each request steps have computed, until it has a token."""

    def __init__(self, n_devices: int, outputs: dict[RequestId, int]) -> None:
        self.computed: dict[RequestId, set[int]] = defaultdict(set)
        self.taken: dict[RequestId, int] = defaultdict(int)
        facts = DeviceFacts(
            "imagined", 12 * GB, 8 * GB, 1e9, 1e9, 1e12, 1e14, slab_bytes=64 << 20, prompt_cell_tokens=CELL
        )
        super().__init__(setup_of(*(facts,) * n_devices, prefix_cache=True), outputs)

    def observe(self, index: int, at_s: float, effects: Effects) -> None:
        first = self.first_tokens()
        for effect in effects:
            if isinstance(effect, PrefixTaken):
                self.taken[effect.request.id] += effect.n_tokens
            if isinstance(effect, StartedStep):
                for request, start, n_tokens in effect.operation.chunks:
                    if request not in first:
                        self.computed[request].update(range(start, start + n_tokens))

    def first_tokens(self) -> dict[RequestId, Tokens]:
        found: dict[RequestId, Tokens] = {}
        for report in self.said:
            if isinstance(report, Tokens):
                found.setdefault(report.request, report)
        return found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_told_is_what_was_not_computed_while_devices_break(seed: int) -> None:
    rng = random.Random(seed)
    requests = [
        make_request(
            f"r{number}",
            A,
            n_prompt=rng.randint(1, 3000),
            max_tokens=20,
            arrival_s=20.0 + rng.random() * 3,
            tenant=rng.choice(("one", "other")),
        )
        for number in range(30)
    ]
    body = Watched(2, {request.id: 20 for request in requests})
    body.send(Register(make_model(A, 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB), path=""))
    for request in requests:
        body.submit_at(request)
    for at_s in (22.0, 35.0):
        body.clock.call_at(at_s, lambda: body.executor_of(rng.randrange(2)).kill())
    body.clock.run()
    assert sum(isinstance(report, Finished) for report in body.said) == len(requests)
    first = body.first_tokens()
    for request in requests:
        n_missing = request.n_prompt - len(body.computed[request.id] & {*range(request.n_prompt)})
        assert first[request.id].n_cached == n_missing <= body.taken[request.id]
    later = [r for r in body.said if isinstance(r, Tokens) and r is not first[r.request]]
    assert {report.n_cached for report in later} == {0}
    assert sum(tokens.n_cached for tokens in first.values()) > 1000


def test_a_request_that_ends_without_a_token_is_forgotten() -> None:
    body = Watched(1, {R: 4})
    body.send(Register(make_model(A, 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB), path=""))
    request = make_request("r", A, n_prompt=N_PROMPT, max_tokens=4)
    body.send(Submit(request, (0,) * N_PROMPT, Sampling()))
    assert len(body.node.requests.given_prompts) == 1
    body.send(Cancel(R))
    body.clock.run()
    assert len(body.node.requests.given_prompts) == 0
