"""When a request with a long prompt is deferred."""

from itertools import pairwise

import pytest

from tokenmux.core.cost import StepWork, prefill_work
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelFacts
from tokenmux.core.request import ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.scheduler.instance.long_prompt import LongPrompt
from tokenmux.testing import make_model, make_request

GRACE_S = 3.0

pytestmark = pytest.mark.pure


class TokenCost(RooflineCost):
    """A millisecond for each token of a prompt."""

    def __init__(self) -> None:
        super().__init__(DeviceFacts("d", 1 << 20, 1 << 20, 1e9, 1e9, 1e9, 1e9), HostFacts(1, 1e9))

    def step_s(self, model: ModelFacts, work: StepWork) -> float:
        return work.prefill_tokens * 1e-3


def prompt(n_tokens: int, ttft_s: float = 10.0) -> LongPrompt:
    request = make_request("r", "m", n_tokens, 1, 0.0, service=ServiceLevel(ttft_s, 0.1))
    return LongPrompt(TokenCost(), make_model("m", 1000), request, GRACE_S)


def test_a_prompt_is_deferred_before_it_is_begun_if_it_would_end_too_late() -> None:
    """5 s of work, due within 10 s: begun later than 8 s after its arrival, it would be late by more than
    3 s."""
    assert prompt(5000).grace_s(0) == pytest.approx(GRACE_S - 5.0)


def test_a_prompt_that_takes_longer_than_its_ttft_has_as_much_time_to_begin_as_one_that_takes_that() -> None:
    begins_by_s = [10.0 + prompt(n).grace_s(0) for n in (10_000, 14_000, 50_000)]
    assert begins_by_s == pytest.approx([GRACE_S] * 3)


def test_what_is_computed_is_not_given_up_lightly() -> None:
    """While nothing else runs, its grace grows faster than it becomes late."""
    long = prompt(14_000)
    graces = [long.grace_s(n) for n in range(0, 15_000, 1000)]
    assert [b - a for a, b in pairwise(graces)] == pytest.approx([2.0] * 14)
    assert graces[-1] == pytest.approx(GRACE_S + 4.0 + 14.0)


def test_tokens_drawn_behind_the_prompt_change_nothing() -> None:
    assert prompt(5000).grace_s(5000) == prompt(5000).grace_s(5400)


def test_work_of_a_prompt_is_the_sum_of_its_pieces() -> None:
    whole, first, rest = prefill_work(0, 5000), prefill_work(0, 2048), prefill_work(2048, 2952)
    assert whole.prefill_tokens == first.prefill_tokens + rest.prefill_tokens
    assert whole.prefill_pairs == first.prefill_pairs + rest.prefill_pairs
