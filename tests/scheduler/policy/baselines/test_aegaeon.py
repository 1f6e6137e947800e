"""The baseline after the Aegaeon paper: its formula for quotas, its groups, its static roles."""

import pytest

from tokenmux.core.cost import StepWork
from tokenmux.core.effects import Effects, StepEnded
from tokenmux.core.event import Arrived, ModelAdded
from tokenmux.core.plan import Channel
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.baselines.aegaeon import (
    ALPHA_MIN,
    MAX_GROUP,
    QMAX_S,
    AegaeonDecode,
    AegaeonPrefill,
    quotas,
)
from tokenmux.simulator.planner.named_models import parse_market
from tokenmux.simulator.scenario import Hardware, simulate, true_cost
from tokenmux.workload.trace import TraceRequest, arrivals


def test_roles_are_static_and_a_group_is_prefilled_before_another_model() -> None:
    market = parse_market(["3*qwen2.5-7b"], {})
    lines = [TraceRequest(0.001 * i, f"qwen2.5-7b-{i % 3}", 300, 40) for i in range(30)]
    prefilled: list[str] = []
    roles: dict[int, set[str]] = {}

    def watch(index: int, _at_s: float, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, StepEnded):
                is_prefill = effect.started.work.prefill_tokens > 0
                roles.setdefault(index, set()).add("prefill" if is_prefill else "decode")
                if is_prefill:
                    prefilled.append(effect.started.model.id)

    outcome = simulate(market, arrivals(lines, market.max_context), 3, "aegaeon", on_effects=watch)
    assert roles == {0: {"prefill"}, 1: {"decode"}, 2: {"decode"}}
    assert [type(i.policy) for i in outcome.simulator.instances] == [
        AegaeonPrefill,
        AegaeonDecode,
        AegaeonDecode,
    ]
    assert len(prefilled) == 30
    assert all(len(set(prefilled[i : i + MAX_GROUP])) == 1 for i in (0, MAX_GROUP, 2 * MAX_GROUP))


def test_quotas_follow_the_formula() -> None:
    market = parse_market(["3*qwen2.5-7b", "big=llama2-13b"], {})
    hardware = Hardware()
    cost = true_cost(market, hardware, hardware.instance(market))
    instance = Instance(hardware.instance(market), HostCache(10**12), AegaeonDecode(), cost)
    for facts in market.facts.values():
        instance.apply(ModelAdded(0.0, facts))
    lines = [TraceRequest(0.0, str(model), 10, 400) for model in market.facts]
    for arrival in arrivals(lines, market.max_context):
        instance.apply(Arrived(0.0, arrival.request))
    models = list(instance.live_models.values())
    n = {m.facts.id: 0.1 / cost.step_s(m.facts, StepWork()) for m in models}
    c = sum(cost.copy_s(Channel.COPY_IN, m.facts.n_bytes) for m in models)
    inverse = sum(1 / value for value in n.values())
    alpha = max(c / (min(n.values()) * QMAX_S) + inverse, ALPHA_MIN)
    answer = quotas(instance, models)
    assert answer == {model: pytest.approx(c / (value * (alpha - inverse))) for model, value in n.items()}
    assert max(answer.values()) == pytest.approx(QMAX_S)
    assert quotas(instance, models[:1]) == {models[0].facts.id: QMAX_S}
