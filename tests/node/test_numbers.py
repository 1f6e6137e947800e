"""Whatever number a request brings, the node goes on and nobody else waits for it."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import DeviceFacts, KvShape, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.messages.commands import Register
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.scheduler.policy.registry import SERVED
from tokenmux.server.front.generation import Ask, TokenIds
from tokenmux.server.front.request_rules import Defaults, check_parameters, output_limit, service_level
from tokenmux.testing import make_model
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

GB = 10**9
SHAPE = KvShape(n_layers=16, n_kv_heads=8, head_dim=64, dtype_bytes=2, block_size=16)
DEVICE = DeviceFacts("imagined", 16 * GB, 8 * GB, 10e9, 10e9, 1e12, 1e14, slab_bytes=64 << 20)
FACTS = {
    name: make_model(name, 10 * GB, kv=SHAPE, max_context=4096, n_parameters=GB, vocab_size=100)
    for name in ("a", "b")
}
ANY = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False)
EXTREMES = (
    5e-324,
    2.3e-308,
    1e-300,
    1e-38,
    1e-9,
    0.001,
    1.0,
    86_400.0,
    1e9,
    1e38,
    1e300,
    1e305,
    1.7976931348623157e308,
)
NUMBER = st.one_of(st.sampled_from(EXTREMES), POSITIVE)
N_TOKENS = 12


def serve(policy: str, requests: Sequence[Request], level: ServiceLevel | None = None) -> NodeOnVirtualTime:
    """A device that holds one of two models, and these requests, all of them in the end complete."""
    setup = setup_of(DEVICE, policy=policy, service=level or ServiceLevel())
    body = NodeOnVirtualTime(setup, {request.id: N_TOKENS for request in requests})
    for facts in FACTS.values():
        body.send(Register(facts, path=""))
    for request in requests:
        body.submit_at(request)
    body.clock.run()
    ends = {message.request: message.reason for message in body.said if isinstance(message, Finished)}
    assert ends == {request.id: FinishReason.LENGTH for request in requests}
    body.pool.check_integrity()
    instance = body.instance
    counted = [*instance.metrics.tenants.values(), *(m.service for m in instance.metrics.models.values())]
    assert all(isfinite(c.attained) and isfinite(c.gpu_s) for c in counted)
    return body


def admitted(number: int, ask: Ask, at_s: float) -> Request | None:
    """The request that an ask becomes, as the front makes it; None if it is refused."""
    facts = FACTS[ask.model]
    assert isinstance(ask.prompt, TokenIds)
    try:
        check_parameters(ask, facts)
        max_tokens = output_limit(ask, ask.prompt.ids, facts, Defaults())
    except InvalidRequest:
        return None
    level = service_level(ask, Defaults())
    n_prompt = len(ask.prompt.ids)
    return Request(
        RequestId(f"r{number}"), facts.id, n_prompt, max_tokens, at_s, level, ask.tenant, ask.weight
    )


PLAIN = st.builds(
    Ask,
    model=st.sampled_from(["a", "b"]),
    prompt=st.builds(TokenIds, st.integers(1, 50).map(lambda n: (1,) * n)),
    max_tokens=st.just(N_TOKENS),
    ttft_s=st.none() | st.sampled_from([0.001, 86_400.0]) | st.floats(0.001, 86_400.0),
    tpot_s=st.none() | st.sampled_from([0.001, 86_400.0]) | st.floats(0.001, 86_400.0),
    weight=st.sampled_from([0.01, 1.0, 100.0]) | st.floats(0.01, 100.0),
)
ODD = st.builds(
    lambda ask, field, number: replace(ask, **{field: number}),
    PLAIN,
    st.sampled_from(["ttft_s", "tpot_s", "weight"]),
    st.sampled_from(EXTREMES) | ANY,
)
"""One number of these may be anything."""


def usual(**odd: float) -> Ask:
    return replace(Ask("a", TokenIds((1,) * 10), max_tokens=N_TOKENS), **odd)


@given(st.lists(PLAIN | ODD, min_size=2, max_size=5), st.sampled_from(SERVED))
@example([usual(tpot_s=1e308)], "slack")
@example([usual(ttft_s=5e-324), usual()], "slack")
@settings(max_examples=300, deadline=None)
def test_what_is_admitted_is_served(asks: list[Ask], policy: str) -> None:
    tenants = itertools.cycle(("one", "two"))
    asks = [replace(ask, tenant=tenant) for ask, tenant in zip(asks, tenants, strict=False)]
    requests = [admitted(number, ask, 0.1 * number) for number, ask in enumerate(asks)]
    serve(policy, [request for request in requests if request is not None])


@given(
    st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER, st.booleans(), st.booleans()), min_size=2, max_size=5),
    st.sampled_from(SERVED),
    st.tuples(NUMBER, NUMBER),
)
@settings(max_examples=120, deadline=None)
def test_the_node_survives_what_admission_would_refuse(
    numbers: list[tuple[float, float, float, float, bool, bool]], policy: str, own: tuple[float, float]
) -> None:
    """Every finite number of a request or of the pool itself, with two tenants and two models."""
    requests = [
        Request(
            RequestId(f"r{i}"),
            ModelId("a" if first_model else "b"),
            10,
            N_TOKENS,
            0.1 * i,
            ServiceLevel(ttft_s, tpot_s),
            "one" if first_tenant else "two",
            weight,
            tenant_weight,
        )
        for i, (ttft_s, tpot_s, weight, tenant_weight, first_model, first_tenant) in enumerate(numbers)
    ]
    serve(policy, requests, ServiceLevel(*own))


@pytest.mark.parametrize("policy", SERVED)
@pytest.mark.parametrize("ttft_s", EXTREMES)
@pytest.mark.parametrize("tpot_s", EXTREMES)
def test_two_tenants_and_two_models_with_extreme_levels(policy: str, ttft_s: float, tpot_s: float) -> None:
    level = ServiceLevel(ttft_s, tpot_s)
    serve(
        policy,
        [
            Request(RequestId(f"r{i}"), ModelId("ab"[i % 2]), 10, N_TOKENS, 0.1 * i, level, f"t{i % 3}")
            for i in range(4)
        ],
    )


def test_a_request_that_can_wait_for_ever_does_not_hold_the_device() -> None:
    """Its model steps in bursts as others do: those who are in a hurry for another model are not kept for
    its whole answer."""
    patient = Request(
        RequestId("patient"), ModelId("a"), 10, 4000, 0.0, ServiceLevel(86_400.0, 86_400.0), "one"
    )
    hurried = Request(RequestId("hurried"), ModelId("b"), 10, 10, 30.0, ServiceLevel(10.0, 0.1), "two")
    body = NodeOnVirtualTime(setup_of(DEVICE), {patient.id: 4000, hurried.id: 10})
    for facts in FACTS.values():
        body.send(Register(facts, path=""))
    body.submit_at(patient)
    body.submit_at(hurried)
    body.clock.run()
    firsts = [m for m in body.said if isinstance(m, Tokens) and m.request == hurried.id and m.index == 0]
    assert firsts[0].at_s < hurried.deadline_s(0) + 0.3  # a burst


def test_nothing_that_is_not_a_number_gets_in() -> None:
    with pytest.raises(ValueError, match="ttft_s is not a number"):
        ServiceLevel(float("nan"))
    level = ServiceLevel(float("inf"), 0.0)
    assert 0 < level.tpot_s < level.ttft_s < float("inf")
    assert ServiceLevel(2.0, 0.05) == ServiceLevel(2.0, 0.05).beside(ServiceLevel())
    assert ServiceLevel(1e8, 1e-5).beside(ServiceLevel(10.0, 0.1)) == ServiceLevel(100.0, 0.01)
