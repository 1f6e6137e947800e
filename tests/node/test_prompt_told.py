"""Of each token of a prompt a node tells once, in order and before any output, whatever happens meanwhile."""

import pytest

from tests.node.scenes import A, B, ends, node_with, request
from tokenmux.core.request import FinishReason, Request
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import PromptTold, Tokens
from tokenmux.testing import make_request
from tokenmux.testing.virtual_node import NodeOnVirtualTime

N_PROMPT = 2500
"""Several chunks of a prompt."""


def ask(body: NodeOnVirtualTime, request: Request, n_likeliest: int | None = 0) -> None:
    prompt = tuple(range(request.n_prompt))
    submit = Submit(request, prompt=prompt, sampling=Sampling(), n_prompt_likeliest=n_likeliest)
    body.clock.call_at(request.arrival_s, lambda: body.send(submit))


def told_of(body: NodeOnVirtualTime, name: str) -> list[float]:
    """What was told of the prompt. Raises if it has gaps, or comes after output."""
    found: list[float] = []
    for report in body.said:
        match report:
            case PromptTold(of, index, values) if of == name:
                assert index == len(found) + 1
                found += [value.drawn for value in values]
            case Tokens(of) if of == name:
                assert len(found) in (0, N_PROMPT - 1)
    return found


EXPECTED = [-float(token) for token in range(1, N_PROMPT)]


def test_each_token_is_told_once() -> None:
    body = node_with(16, n_output={"r": 4, "quiet": 4})
    now_s = body.clock.now_s()
    ask(body, make_request("r", A, n_prompt=N_PROMPT, max_tokens=4, arrival_s=now_s))
    ask(body, make_request("quiet", A, n_prompt=N_PROMPT, max_tokens=4, arrival_s=now_s), None)
    body.clock.run()
    assert told_of(body, "r") == EXPECTED
    assert told_of(body, "quiet") == []
    assert len([report for report in body.said if isinstance(report, PromptTold)]) > 2


@pytest.mark.parametrize("kills", [1, 3])
def test_lost_devices_and_other_models_in_between_cost_nothing(kills: int) -> None:
    """What is computed again was told, or is told then."""
    body = node_with(16, 16, n_output={"r": 40, "s": 40})
    now_s = body.clock.now_s()
    ask(body, make_request("r", A, n_prompt=N_PROMPT, max_tokens=40, arrival_s=now_s))
    body.submit_at(request("s", B, now_s, 40))
    for _ in range(kills):
        n_told = len(told_of(body, "r"))
        while len(told_of(body, "r")) == n_told and not ends(body):
            body.clock.run_next()
        home = body.pool.index_of("r")
        if home is not None:
            body.executor_of(home).kill()
    body.clock.run()
    assert told_of(body, "r") == EXPECTED
    assert ends(body) == {"r": FinishReason.LENGTH, "s": FinishReason.LENGTH}
    body.pool.check_integrity()
