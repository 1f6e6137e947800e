"""What "on time" means on this machine: a service level derived from the duration of its steps, so that the
report means something."""

from dataclasses import dataclass

from tokenmux.client import AsyncClient

TURNS = 8
"""A token may take as long as this many decode steps of the slowest model, so that this many models can take
turns."""
FIRST_TOKENS = 12
"""The first token may take as long as this many others."""
_WARM_TOKENS, _TOKENS = 4, 24


@dataclass(frozen=True, slots=True)
class Calibration:
    """Seconds of one decode step by model, measured through the server, one request at a time."""

    step_s: dict[str, float]

    @property
    def slowest_step_s(self) -> float:
        return max(self.step_s.values())

    @property
    def tpot_s(self) -> float:
        return round(TURNS * self.slowest_step_s, 3)

    @property
    def ttft_s(self) -> float:
        return round(FIRST_TOKENS * self.tpot_s, 2)


async def calibrate(client: AsyncClient, models: list[str]) -> Calibration:
    """Time each model's decode steps alone, after a few tokens that load it."""
    step_s = {}
    for model in models:
        await client.generate(model, "Warm up", max_tokens=_WARM_TOKENS, ignore_end_tokens=True)
        finish = (
            await client.generate(model, "Calibrate", max_tokens=_TOKENS, ignore_end_tokens=True)
        ).finish
        step_s[model] = (finish.total_s - finish.ttft_s) / (finish.n_completion_tokens - 1)
    return Calibration(step_s)
