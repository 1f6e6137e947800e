"""The cost model starts from a roofline and follows what is measured."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmux.core.cost import StepWork, burst_ends_s
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape, ModelFacts
from tokenmux.core.plan import Channel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.testing import make_model

DEVICE = DeviceFacts(
    "d",
    arena_bytes=1 << 30,
    host_kv_bytes=1 << 30,
    copy_in_bytes_per_s=16e9,
    copy_out_bytes_per_s=8e9,
    memory_bytes_per_s=2e12,
    flops_per_s=4e14,
    step_overhead_s=1e-3,
    copy_overhead_s=1e-4,
)
HOST = HostFacts(1 << 30, fetch_bytes_per_s=2e9, fetch_overhead_s=0.01)
COPIES = (Channel.COPY_IN, Channel.COPY_OUT, Channel.FETCH)

works = st.builds(
    StepWork,
    st.integers(0, 4096),
    st.integers(0, 1 << 22),
    st.integers(1, 256),
    st.integers(0, 1 << 20),
    st.just(False),
)


def model(name: str = "m", n_parameters: int = 7_000_000_000) -> ModelFacts:
    return make_model(name, 2 * n_parameters, kv=KvShape(32, 8, 128, 2, 16), max_context=4096)


def test_a_small_step_lasts_as_long_as_reading_the_weights() -> None:
    assert RooflineCost(DEVICE, HOST).step_s(model(), StepWork(decode_rows=1)) == pytest.approx(
        1e-3 + 14e9 / 2e12, 1e-4
    )


def test_a_large_step_lasts_as_long_as_its_arithmetic() -> None:
    n = 100_000
    seconds = RooflineCost(DEVICE, HOST).step_s(model(), StepWork(prefill_tokens=n))
    assert seconds == pytest.approx(1e-3 + 2 * 7e9 * n / 4e14, 1e-4)


@pytest.mark.parametrize(
    ("channel", "seconds"), [(Channel.COPY_IN, 1.0001), (Channel.COPY_OUT, 2.0001), (Channel.FETCH, 8.01)]
)
def test_a_copy_lasts_its_bytes_over_the_channel(channel: Channel, seconds: float) -> None:
    assert RooflineCost(DEVICE, HOST).copy_s(channel, 16_000_000_000) == pytest.approx(seconds)


@settings(max_examples=100)
@given(work=works, more=works)
def test_more_work_never_costs_less(work: StepWork, more: StepWork) -> None:
    cost = RooflineCost(DEVICE, HOST)
    both = StepWork(*(type(a)(a + b) for a, b in zip(work, more, strict=True)))
    assert 0 < cost.step_s(model(), work) <= cost.step_s(model(), both)


@settings(max_examples=60)
@given(work=works, factor=st.floats(0.3, 15.0), wrong=st.floats(0.3, 15.0))
def test_estimates_follow_measurements(work: StepWork, factor: float, wrong: float) -> None:
    """The first measurement is believed; after twenty more, one that was wrong has lost its say."""
    cost = RooflineCost(DEVICE, HOST)
    roofline_s = cost.step_s(model(), work)
    cost.observe_step(model(), work, wrong * roofline_s)
    assert cost.step_s(model(), work) == pytest.approx(wrong * roofline_s)
    for _ in range(40):
        cost.observe_step(model(), work, factor * roofline_s)
    assert cost.step_s(model(), work) == pytest.approx(factor * roofline_s, rel=0.01)


def test_one_outlier_moves_an_estimate_little() -> None:
    """A page fault of minutes must not teach that the model is slow."""
    cost, work = RooflineCost(DEVICE, HOST), StepWork(decode_rows=1)
    before_s = cost.step_s(model(), work)
    cost.observe_step(model(), work, before_s)
    cost.observe_step(model(), work, 1000 * before_s)
    assert cost.step_s(model(), work) <= 5 * before_s
    cost.observe_copy(Channel.COPY_IN, 1000, 1e-9)
    assert cost.copy_s(Channel.COPY_IN, 1000) >= 0.8 * RooflineCost(DEVICE, HOST).copy_s(
        Channel.COPY_IN, 1000
    )


def test_what_one_model_teaches_says_nothing_of_another_that_was_measured() -> None:
    """Nor does decoding of prefill, or one channel of another."""
    cost, fresh = RooflineCost(DEVICE, HOST), RooflineCost(DEVICE, HOST)
    decode, prefill = StepWork(decode_rows=4, context_tokens=100), StepWork(prefill_tokens=512)
    cost.observe_step(model("other"), decode, fresh.step_s(model("other"), decode))
    cost.observe_step(model(), decode, 1.0)
    assert cost.step_s(model("other"), decode) == fresh.step_s(model("other"), decode)
    assert cost.step_s(model(), prefill) == fresh.step_s(model(), prefill)
    cost.observe_copy(Channel.COPY_IN, 1 << 20, 1.0)
    assert cost.copy_s(Channel.COPY_IN, 1 << 20) > fresh.copy_s(Channel.COPY_IN, 1 << 20)
    assert cost.copy_s(Channel.COPY_OUT, 1 << 20) == fresh.copy_s(Channel.COPY_OUT, 1 << 20)


@settings(max_examples=60)
@given(work=works, repeat=st.integers(1, 40), start_s=st.floats(0, 1e4))
def test_a_burst_is_its_steps_one_after_another(work: StepWork, repeat: int, start_s: float) -> None:
    """Each reads one token more a row than the one before."""
    cost = RooflineCost(DEVICE, HOST)
    ends_s = burst_ends_s(cost, model(), work, repeat, start_s)
    assert len(ends_s) == repeat
    for i, end_s in enumerate(ends_s):
        steps = [
            work._replace(context_tokens=work.context_tokens + k * work.decode_rows) for k in range(i + 1)
        ]
        assert end_s == pytest.approx(start_s + sum(cost.step_s(model(), step) for step in steps))


def test_what_a_copy_costs_the_steps_beside_it_is_learned_apart_from_the_steps_themselves() -> None:
    cost = RooflineCost(DEVICE, HOST)
    alone = StepWork(decode_rows=4, context_tokens=1000)
    beside = alone._replace(beside_copy=True)
    base_s = cost.step_s(model(), alone)
    for _ in range(30):
        cost.observe_step(model(), alone, 2.0 * base_s)
        cost.observe_step(model(), beside, 3.0 * base_s)
    assert cost.interference == pytest.approx(1.5, 0.01)
    assert cost.step_s(model(), alone) == pytest.approx(2.0 * base_s, 0.01)
    assert cost.step_s(model(), beside) == pytest.approx(3.0 * base_s, 0.01)
    assert cost.step_s(model("another"), beside) == pytest.approx(
        1.5 * cost.step_s(model("another"), alone), 0.01
    )


def test_a_copy_never_makes_steps_look_faster() -> None:
    cost = RooflineCost(DEVICE, HOST)
    work = StepWork(decode_rows=1)
    base_s = cost.step_s(model(), work)
    cost.observe_step(model(), work, base_s)
    for _ in range(30):
        cost.observe_step(model(), work._replace(beside_copy=True), 0.5 * base_s)
    assert cost.interference == 1.0


def test_a_model_that_never_stepped_is_expected_to_be_as_far_from_its_roofline_as_the_others() -> None:
    cost = RooflineCost(DEVICE, HOST)
    decode, prefill = StepWork(decode_rows=1), StepWork(prefill_tokens=100)
    expected_s = {work: cost.step_s(model("new", 10**9), work) for work in (decode, prefill)}
    for _ in range(10):
        cost.observe_step(model("old"), decode, 3.0 * RooflineCost(DEVICE, HOST).step_s(model("old"), decode))
    assert cost.step_s(model("new", 10**9), decode) == pytest.approx(3.0 * expected_s[decode], 0.01)
    assert cost.step_s(model("new", 10**9), prefill) == expected_s[prefill]
