"""What `sample` computes, in plain torch, with a sort instead of the kernels' search.

1. Log-probabilities are those of the logits, before temperature and cuts.
2. Of the logits divided by the temperature, those stay that reach three thresholds. `top_k`: the k-th
   largest. `top_p`: the largest one down to which the probability (among what top_k left) sums up to p.
   `min_p`: p times the probability of the likeliest. Logits equal to a threshold stay, so the outcome does
   not depend on an order of tokens.
3. The draw is a race (Gumbel-max): token v arrives at `E_v / p_v`, E_v exponential, and the first one wins.
   E_v depends only on (seed, position, v) (`noise.py`). The winner is an argmax that needs no order of
   summation, and changing a logit by an ulp moves one arrival, while inverting a running sum would move
   every boundary after it.
"""

from __future__ import annotations

import torch

from tokenmux.kernels.sample.noise import exponentials
from tokenmux.kernels.sample.parameters import GREEDY_BELOW, Sampled, SamplingRows


def sample(logits: torch.Tensor, sampling: SamplingRows, *, top_n: int = 0) -> Sampled:
    """Draw a token for each row of `logits` `[row, vocabulary]`. NaN counts as -inf; at least one logit
    per row must be finite."""
    scores = logits.double().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    log_probabilities = torch.log_softmax(scores, dim=1)
    tokens = torch.stack([_draw(scores[row], sampling, row) for row in range(len(scores))])
    # Stable, so that of equal tokens the lower comes first; torch.topk promises no order.
    order = torch.sort(log_probabilities, dim=1, descending=True, stable=True)
    return Sampled(
        tokens=tokens,
        log_probabilities=log_probabilities.gather(1, tokens[:, None])[:, 0].float(),
        top_tokens=order.indices[:, :top_n],
        top_log_probabilities=order.values[:, :top_n].float(),
    )


def keep(scores: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Which tokens of one row of `scores` may be drawn (bool)."""
    ordered = scores.sort(descending=True).values
    kept = scores >= ordered[min(top_k, len(scores)) - 1]
    weights = torch.exp((scores - ordered[0]) / temperature)
    if top_p < 1:
        left = weights[kept].sort(descending=True).values
        reached = int((left.cumsum(0) < top_p * left.sum()).sum())
        kept &= weights >= left[reached]
    return kept & (weights >= min_p)


def _draw(scores: torch.Tensor, sampling: SamplingRows, row: int) -> torch.Tensor:
    temperature = float(sampling.temperature[row])
    if temperature < GREEDY_BELOW:
        return torch.argmax(scores)
    top_k, top_p, min_p = int(sampling.top_k[row]), float(sampling.top_p[row]), float(sampling.min_p[row])
    race = exponentials(int(sampling.seed[row]), int(sampling.position[row]), len(scores))
    arrivals = scores / temperature - torch.log(race)
    return torch.argmax(arrivals.masked_fill(~keep(scores, temperature, top_k, top_p, min_p), float("-inf")))
