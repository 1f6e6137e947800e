"""What the public builders and doubles promise to whoever tests with them."""

import pytest

import tokenmux.testing
from tokenmux.core.errors import IllegalPlan
from tokenmux.core.event import Arrived, Cancelled, ModelAdded
from tokenmux.core.plan import IDLE, Activate, Channel, Fetch, Plan, Step
from tokenmux.core.started import StartedFetch
from tokenmux.scheduler.policy.registry import SERVED, make_policy
from tokenmux.simulator.simulator import Simulator
from tokenmux.testing import (
    ScriptedPolicy,
    make_arrival,
    make_device,
    make_host,
    make_instance,
    make_model,
    make_request,
)


def test_all_public_names_are_there() -> None:
    assert all(hasattr(tokenmux.testing, name) for name in tokenmux.testing.__all__)
    assert sorted(tokenmux.testing.__all__) == tokenmux.testing.__all__


@pytest.mark.parametrize("policy", SERVED)
def test_worlds_made_without_a_word_about_sizes_can_be_served(policy: str) -> None:
    models = [make_model(name, 4_000) for name in "abc"]
    instance = make_instance(make_device(), make_policy(policy))
    simulator = Simulator([instance], instance.cost, models={m.id: m for m in models})
    arrivals = [make_arrival(f"{i}", models[i % 3], n_output=5, arrival_s=2.0 * i) for i in range(9)]
    simulator.run(arrivals)
    assert sum(instance.metrics.of(m.id).service.n_tokens for m in models) == 45
    assert sum(instance.metrics.of(m.id).n_swaps for m in models) > 3, "two of three fit"
    instance.check_integrity()


def test_a_model_has_one_image_or_those_that_are_named() -> None:
    plain, adapted = make_model("m", 300), make_model("n", images={"base": 300, "adapter": 20})
    assert [(image.id, image.n_bytes) for image in plain.images] == [("m", 300)]
    assert (plain.n_parameters, adapted.n_bytes, adapted.n_parameters) == (150, 320, 160)


def test_a_request_takes_a_model_or_its_name() -> None:
    assert make_request("r", make_model("m")) == make_request("r", "m")


def test_a_scripted_policy_says_each_plan_once_and_on_its_channel() -> None:
    policy = ScriptedPolicy()
    model = make_model("m")
    instance = make_instance(make_device(), policy, make_host())
    instance.apply(ModelAdded(0.0, model))
    instance.apply(Arrived(0.0, make_request("r", model)))
    policy.plans[Channel.FETCH] = Plan(Fetch(model.id))
    started = [effect for effect in instance.decide(0.0) if isinstance(effect, StartedFetch)]
    assert [effect.operation for effect in started] == [Fetch(model.id)]
    assert policy.plans == {}
    assert policy.plan(Channel.FETCH, instance) == IDLE
    policy.plans[Channel.COPY_IN] = Plan(Activate(model.id))
    with pytest.raises(IllegalPlan):
        instance.decide(0.0)


def test_a_scripted_policy_interrupts_for_what_it_is_told() -> None:
    policy = ScriptedPolicy()
    model = make_model("m")
    instance = make_instance(make_device(), policy)
    step, arrived = Step(model.id, ()), Arrived(0.0, make_request("r", model))
    assert not policy.interrupts(step, arrived, instance)
    policy.interrupt_on = (Cancelled, Arrived)
    assert policy.interrupts(step, arrived, instance)
