"""How many devices a moment's traffic asks for, estimated without simulating: a fluid of requests.

    live      = P(a model has a request) = 1 - exp(-concurrency),   concurrency = rate x tokens x TPOT
    compute   = live x step / TPOT + rows and prompts             a live model steps once per TPOT
    copy-in   = live x weights / copy rate / TTFT                 and may have to come back once per TTFT

Shares of a second per second, summed over models; the larger of the two sums counts. The estimate knows
neither bursts nor evictions: multiply it by what simulations of the same market say (`calibration`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp

from tokenmux.core.cost import CostModel, StepWork
from tokenmux.core.facts import ModelFacts
from tokenmux.core.plan import Channel
from tokenmux.core.request import DEFAULT_LEVEL, ServiceLevel


@dataclass(frozen=True, slots=True)
class Flow:
    """One model's traffic: requests per second, and their mean lengths in tokens."""

    model: ModelFacts
    rate_rps: float
    input_tokens: float
    output_tokens: float
    service: ServiceLevel = DEFAULT_LEVEL


def fluid_devices(flows: Iterable[Flow], cost: CostModel) -> float:
    """Devices (instances) that these flows together ask for, as a fraction."""
    compute = copies = 0.0
    for flow in flows:
        compute += _compute(flow, cost)
        load_s = cost.copy_s(Channel.COPY_IN, flow.model.n_bytes)
        copies += _live(flow) * load_s / flow.service.ttft_s
    return max(compute, copies)


def calibration(simulated: Sequence[int], estimated: Sequence[float]) -> float:
    """The largest ratio of what simulations needed to what was estimated for the same traffic, at least 1.
    Pools come in whole instances: where `n` are the fewest, what was needed lies between `n` - 1 and `n`, and
    counts as half way."""
    return max((1.0, *((n - 0.5) / e for n, e in zip(simulated, estimated, strict=True) if e > 0)))


def _concurrency(flow: Flow) -> float:
    """Mean number of its requests that want tokens, if these come when they are due."""
    return flow.rate_rps * flow.output_tokens * flow.service.tpot_s


def _live(flow: Flow) -> float:
    return 1 - exp(-_concurrency(flow))


def _compute(flow: Flow, cost: CostModel) -> float:
    live, n_prompt = _live(flow), max(1, round(flow.input_tokens))
    if not live:
        return 0.0
    rows = max(1.0, _concurrency(flow) / live)
    context = rows * (flow.input_tokens + flow.output_tokens / 2)
    step_s = cost.step_s(flow.model, StepWork(decode_rows=round(rows), context_tokens=round(context)))
    prompt_s = cost.step_s(flow.model, StepWork(n_prompt, n_prompt * (n_prompt + 1) // 2))
    return live * step_s / flow.service.tpot_s + flow.rate_rps * prompt_s
