"""How long steps and copies take: the work that a step is, and what gives estimates of its duration.

Policies read a cost model; the instance tells it what was measured. `tokenmux.core.roofline_cost` is the one
of a running engine, the simulator has others.
"""

from typing import NamedTuple, Protocol

from tokenmux.core.facts import ModelFacts
from tokenmux.core.plan import Channel


class StepWork(NamedTuple):
    """The work of one step: the numbers that its duration depends on.

    `prefill_pairs` is the number of (query, key) pairs of the prefilled tokens; `context_tokens` is the total
    KV length that the decode rows read. `beside_copy` is true if a copy between host and device is in flight
    when the step begins.
    """

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_rows: int = 0
    context_tokens: int = 0
    beside_copy: bool = False


NO_WORK = StepWork()


def prefill_work(start: int, n_tokens: int) -> StepWork:
    """The work of computing `n_tokens` of one prompt, from `start` on."""
    return StepWork(n_tokens, n_tokens * start + n_tokens * (n_tokens + 1) // 2)


class CostModel(Protocol):
    """Estimated durations in seconds. Each is a deterministic function of what the model was told."""

    def step_s(self, model: ModelFacts, work: StepWork) -> float: ...

    def copy_s(self, channel: Channel, n_bytes: int) -> float: ...

    def move_s(self, n_bytes: int) -> float:
        """Time to move `n_bytes` inside the device."""
        ...

    def observe_step(self, model: ModelFacts, work: StepWork, seconds: float) -> None: ...

    def observe_copy(self, channel: Channel, n_bytes: int, seconds: float) -> None: ...


def burst_ends_s(
    cost: CostModel, model: ModelFacts, work: StepWork, repeat: int, start_s: float
) -> tuple[float, ...]:
    """When each iteration of a repeated step ends. The context grows by one token per row and iteration."""
    ends = []
    at_s = start_s
    prefill, pairs, rows, context, beside_copy = work
    for _ in range(repeat):
        at_s += cost.step_s(model, StepWork(prefill, pairs, rows, context, beside_copy))
        ends.append(at_s)
        context += rows
    return tuple(ends)
