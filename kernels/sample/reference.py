"""What `sample` computes, in plain torch, with a sort where the kernels search.

1. Penalties change the logits in place. Log-probabilities are those of the result, before temperature and
   cuts.
2. Of the logits divided by the temperature, those stay that reach three thresholds: `top_k`, the k-th
   largest; `top_p`, the largest one down to which the probability (among what top_k left) sums up to p;
   `min_p`, p times the probability of the likeliest. Logits equal to a threshold stay, so the outcome has no
   order of tokens in it.
3. The draw is a race (Gumbel-max): token v arrives at `E_v / p_v`, E_v exponential, and the first one wins.
   E_v comes from a counter-based generator keyed by the seed and counting (position, v): it depends on
   nothing else, the winner is an argmax that needs no order of summation, and changing a logit by an ulp
   moves one arrival, where inverting a running sum would move every boundary after it.
"""

from __future__ import annotations

import torch

from tokenmux.kernels.sample.parameters import GREEDY_BELOW, Penalties, Sampled, SamplingRows

_MASK = 0xFFFFFFFF
_ROUNDS = 10


def sample(
    logits: torch.Tensor, sampling: SamplingRows, *, penalties: Penalties | None = None, top_n: int = 0
) -> Sampled:
    """Draws a token for each row of `logits` `[row, vocabulary]`; NaN counts as -inf; one logit a row is
    finite."""
    if penalties is not None:
        penalise(logits, penalties)
    scores = logits.double().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    log_probabilities = torch.log_softmax(scores, dim=1)
    tokens = torch.stack([_draw(scores[row], sampling, row) for row in range(len(scores))])
    # Stable, so that of equals the lower token comes first; torch.topk promises no order.
    order = torch.sort(log_probabilities, dim=1, descending=True, stable=True)
    return Sampled(
        tokens=tokens,
        log_probabilities=log_probabilities.gather(1, tokens[:, None])[:, 0].float(),
        top_tokens=order.indices[:, :top_n],
        top_log_probabilities=order.values[:, :top_n].float(),
    )


def penalise(logits: torch.Tensor, penalties: Penalties) -> None:
    """Applies `penalties` to `logits` in place, in float32, rounded once to their dtype."""
    for row, used in enumerate(penalties.lengths.tolist()):
        tokens = penalties.tokens[row, :used].long()
        counts = penalties.counts[row, :used]
        x = logits[row, tokens].float()
        repetition = penalties.repetition[row]
        x = torch.where(x > 0, x / repetition, x * repetition)
        x = x - penalties.frequency[row] * counts - penalties.presence[row] * (counts > 0)
        logits[row, tokens] = x.to(logits.dtype)


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


def exponentials(seed: int, position: int, vocabulary: int) -> torch.Tensor:
    """E_v of each token: `-log(1 - u)`, u = (bits + 1/2) / 2**32 from Philox4x32-10 (Salmon et al., SC 2011).

    The key is the seed (low word, high word), the counter is (v // 4, position low, position high, 0), and
    token v gets word v % 4. Winners have small E, and small u are exact to the last bit, so that 32 bits are
    enough for any vocabulary.
    """
    groups = torch.arange(-(-vocabulary // 4), dtype=torch.int64)
    counter = [
        groups,
        torch.full_like(groups, position & _MASK),
        torch.full_like(groups, position >> 32 & _MASK),
        torch.zeros_like(groups),
    ]
    words = torch.stack(philox(counter, (seed & _MASK, seed >> 32 & _MASK)), dim=1).flatten()[:vocabulary]
    return -torch.log1p(-(words.double() + 0.5) / 2**32)


def philox(counter: list[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Philox4x32-10 on int64 tensors that hold unsigned 32-bit words."""
    low, high = key
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high2, low2 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high2 ^ c1 ^ low, low2, high0 ^ c3 ^ high, low0
        low, high = low + 0x9E3779B9 & _MASK, high + 0xBB67AE85 & _MASK
    return [c0, c1, c2, c3]


def _multiply(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The high and low word of a 32 by 32 bit product, by halves of `x`, since the whole overflows int64."""
    upper = (x >> 16) * factor
    whole = ((upper & 0xFFFF) << 16) + (x & 0xFFFF) * factor
    return (upper >> 16) + (whole >> 32), whole & _MASK


def _draw(scores: torch.Tensor, sampling: SamplingRows, row: int) -> torch.Tensor:
    temperature = float(sampling.temperature[row])
    if temperature < GREEDY_BELOW:
        return torch.argmax(scores)
    top_k, top_p, min_p = int(sampling.top_k[row]), float(sampling.top_p[row]), float(sampling.min_p[row])
    race = exponentials(int(sampling.seed[row]), int(sampling.position[row]), len(scores))
    arrivals = scores / temperature - torch.log(race)
    return torch.argmax(arrivals.masked_fill(~keep(scores, temperature, top_k, top_p, min_p), float("-inf")))
