"""How the tokens of a request are drawn."""

from dataclasses import dataclass

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: dividing logits by less may overflow, and a draw would pick
the likeliest token anyway."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy. A draw is a pure function of (seed, position)."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW
