"""Hidden states of a prompt are told once, in order and before the request ends, whatever happens
meanwhile; and a request for them draws nothing."""

from array import array

import pytest

from tests.node.scenes import A, B, ends, node_with, request
from tokenmux.core.facts import FIRST_INSTANCE
from tokenmux.core.pooling import PoolingKind
from tokenmux.core.request import FinishReason, Request
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, PromptPooled, Tokens
from tokenmux.testing import make_request
from tokenmux.testing.virtual_node import NodeOnVirtualTime

N_PROMPT = 2500
"""Several chunks of a prompt."""


def ask(body: NodeOnVirtualTime, request: Request, kind: PoolingKind) -> None:
    prompt = tuple(range(request.n_prompt))
    submit = Submit(request, prompt=prompt, sampling=Sampling(), pooling=kind, draws=False)
    body.clock.call_at(request.arrival_s, lambda: body.send(submit))


def pooled_of(body: NodeOnVirtualTime, name: str) -> list[tuple[int, int, float]]:
    """What was told of the prompt, as first position, number of positions and sum."""
    found: list[tuple[int, int, float]] = []
    ended = False
    for report in body.said:
        match report:
            case PromptPooled(of, rows) if of == name:
                assert not ended
                found.append((rows.first, rows.n, array("f", rows.sums)[0]))
            case Finished(of) if of == name:
                ended = True
            case Tokens(of):
                assert of != name
    return found


def whole(body: NodeOnVirtualTime) -> list[tuple[int, int, float]]:
    grid = body.pool.instances[FIRST_INSTANCE].device.cell_tokens
    cells = [range(first, min(first + grid, N_PROMPT)) for first in range(0, N_PROMPT, grid)]
    assert len(cells) > 2
    return [(cell[0], len(cell), array("f", [float(sum(cell))])[0]) for cell in cells]


def test_each_position_is_told_once() -> None:
    body = node_with(16, n_output={"mean": 1, "last": 1, "first": 1, "r": 4})
    now_s = body.clock.now_s()
    for kind in ("mean", "last", "first"):
        ask(body, make_request(kind, A, n_prompt=N_PROMPT, max_tokens=1, arrival_s=now_s), kind)
    body.submit_at(make_request("r", A, n_prompt=N_PROMPT, max_tokens=4, arrival_s=now_s))
    body.clock.run()
    assert pooled_of(body, "mean") == whole(body)
    assert pooled_of(body, "last") == [(N_PROMPT - 1, 1, N_PROMPT - 1.0)]
    assert pooled_of(body, "first") == [(0, 1, 0.0)]
    assert ends(body) == dict.fromkeys(("mean", "last", "first", "r"), FinishReason.LENGTH)


@pytest.mark.parametrize("kills", [1, 3])
def test_lost_devices_and_other_models_in_between_cost_nothing(kills: int) -> None:
    """What is computed again was told, or is told then."""
    body = node_with(16, 16, n_output={"e": 1, "s": 40})
    now_s = body.clock.now_s()
    ask(body, make_request("e", A, n_prompt=N_PROMPT, max_tokens=1, arrival_s=now_s), "mean")
    body.submit_at(request("s", B, now_s, 40))
    for _ in range(kills):
        n_told = len(pooled_of(body, "e"))
        while len(pooled_of(body, "e")) == n_told and not ends(body):
            body.clock.run_next()
        home = body.pool.index_of("e")
        if home is not None:
            body.executor_of(home).kill()
    body.clock.run()
    assert pooled_of(body, "e") == whole(body)
    assert ends(body) == {"e": FinishReason.LENGTH, "s": FinishReason.LENGTH}
    body.pool.check_integrity()
