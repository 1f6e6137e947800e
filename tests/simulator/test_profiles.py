"""Step times: the fits, their physical floors, and what stands in where nobody measured."""

import pytest

from tokenmux.core.cost import StepWork, burst_ends_s
from tokenmux.core.errors import NotFound
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Channel
from tokenmux.simulator.architectures import ARCHITECTURES, architecture, measured_as, paper_architecture
from tokenmux.simulator.hardware import GPUS, gpu, instance_facts
from tokenmux.simulator.profiles import ProfiledCost, derived_fit, step_fit
from tokenmux.simulator.scenario import Hardware, market, true_cost


def cost_of(gpu_name: str, name: str, n_devices: int = 1) -> tuple[ProfiledCost, ModelId]:
    model = architecture(name).facts("m")
    fit = step_fit(gpu(gpu_name), n_devices, measured_as(name), model)
    return ProfiledCost(instance_facts(gpu(gpu_name), n_devices), [(model, fit)], 5e9), model.id


def seconds(gpu_name: str, name: str, work: StepWork, n_devices: int = 1) -> float:
    cost, _ = cost_of(gpu_name, name, n_devices)
    return cost.step_s(architecture(name).facts("m"), work)


def test_measured_points_are_met() -> None:
    """Medians of the artifact's measurements: prompts of 2048 tokens, and batches of one."""
    assert seconds(
        "H800", "qwen2.5-7b", StepWork(prefill_tokens=2048, prefill_pairs=2048**2 // 2)
    ) == pytest.approx(0.0506, rel=0.1)
    assert seconds("H100", "qwen2.5-7b", StepWork(decode_rows=1, context_tokens=16)) == pytest.approx(
        0.0091, rel=0.05
    )


@pytest.mark.parametrize("gpu_name", GPUS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_physics_is_never_beaten(gpu_name: str, name: str) -> None:
    kind, model = gpu(gpu_name), architecture(name).facts("m")
    decode = seconds(gpu_name, name, StepWork(decode_rows=4, context_tokens=4000))
    read = model.n_bytes + 4000 * model.kv.token_bytes
    assert decode >= read / kind.memory_bytes_per_s
    prefill = seconds(gpu_name, name, StepWork(prefill_tokens=4096, prefill_pairs=4096**2 // 2))
    assert prefill >= 2 * model.n_parameters * 4096 / kind.flops_per_s


def test_a_derived_fit_is_near_the_measured_one() -> None:
    for name in ("qwen2.5-7b", "llama2-13b"):
        model = architecture(name).facts("m")
        measured, derived = step_fit(gpu("H100"), 1, name, model), derived_fit(gpu("H100"), 1, model)
        assert derived.decode_ms == pytest.approx(measured.decode_ms, rel=0.35)
        assert derived.prefill_us == pytest.approx(measured.prefill_us, rel=0.15)


def test_a_group_of_devices_is_one_larger_instance() -> None:
    one, four = instance_facts(gpu("H100")), instance_facts(gpu("H100"), 4)
    assert four.arena_bytes == pytest.approx(4 * one.arena_bytes)
    work = StepWork(decode_rows=8, context_tokens=8000)
    assert seconds("H100", "qwen2.5-72b", work, 4) < seconds("H100", "qwen2.5-72b", work, 2)


def test_rows_beside_a_prompt_cost_no_second_reading() -> None:
    alone = seconds("H100", "qwen2.5-7b", StepWork(prefill_tokens=1024, prefill_pairs=1024**2 // 2))
    mixed = seconds("H100", "qwen2.5-7b", StepWork(1024, 1024**2 // 2, 4, 4000))
    decode = seconds("H100", "qwen2.5-7b", StepWork(0, 0, 4, 4000))
    assert alone < mixed < alone + decode / 2


def test_copies_take_bytes_over_bandwidth() -> None:
    cost, _ = cost_of("H100", "qwen2.5-7b")
    assert cost.copy_s(Channel.COPY_IN, 16 * 10**9) == pytest.approx(1.0)
    assert cost.copy_s(Channel.FETCH, 5 * 10**9) == pytest.approx(1.0)


def test_the_papers_mix() -> None:
    sizes = [paper_architecture(index).facts("m").n_bytes // 10**9 for index in range(10)]
    assert sizes == [14] * 6 + [18] * 2 + [26] * 2
    assert paper_architecture(13).facts("m").kv.token_bytes == 4 * 28 * 3584


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(NotFound, match="H100"):
        gpu("TPU")
    with pytest.raises(NotFound, match="llama2-7b"):
        architecture("gpt-9")


def test_a_long_prompt_costs_its_attention_and_a_short_one_what_was_measured() -> None:
    models = market({"m": architecture("llama3.1-8b")})
    cost = true_cost(models, Hardware(), Hardware().instance(models))
    (facts,) = models.facts.values()

    def prompt_s(n: int) -> float:
        return cost.step_s(facts, StepWork(n, n * (n + 1) // 2))

    assert 1.9 < prompt_s(8192) / prompt_s(4096) < 2.2
    assert 2.0 < prompt_s(100_000) / (prompt_s(4096) * 100_000 / 4096) < 4.0


def test_a_burst_ends_to_the_bit_when_its_iterations_do() -> None:
    models = market({"m": architecture("qwen2.5-7b")})
    cost = true_cost(models, Hardware(), Hardware().instance(models))
    (facts,) = models.facts.values()
    for work in (
        StepWork(decode_rows=7, context_tokens=901),
        StepWork(1, 1, 3, 700),
        StepWork(512, 99, 0, 0),
    ):
        for repeat in (1, 2, 23):
            assert cost.burst_ends_s(facts, work, repeat, 1.7) == burst_ends_s(cost, facts, work, repeat, 1.7)
