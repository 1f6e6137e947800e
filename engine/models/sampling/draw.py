"""Drawing the next token from logits, each row by itself, as a pure function of (logits, sampling, position).

A draw is a race (`tokenmux.kernels.sample.reference`): token v arrives at `E_v / p_v` and the first one
wins. E_v is a random number of the request's seed, the token's position and v, defined once for the CPU and
the GPU (`noise.py` there). There is no generator whose state could run ahead, so preemption, batching and
recovery cannot change a token. Tokens of equal probability at the edge of a top-k or top-p set are all
kept: the set then does not depend on how ties are sorted.

Rules of a request change its logits first, in float32 (`logit_changes.py`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log

import torch

from tokenmux.core.sampling import Sampling
from tokenmux.kernels.sample import noise
from tokenmux.models.sampling.logit_changes import LogitChanges, changed_row, changes_of, forbidden_next
from tokenmux.models.sampling.masks import TokenBits, unpacked, without
from tokenmux.models.sampling.past_tokens import PastTokens

_SORTED_FIRST = 1024


@dataclass(frozen=True, slots=True)
class Draw:
    """What one draw depends on besides its logits; `position` is that of the drawn token. `past` is what the
    rules of `sampling` look at; None: no rules, or rules that look at nothing. `allowed` are the only tokens
    that can be drawn; None: all."""

    sampling: Sampling
    position: int
    forbidden: Collection[int] = ()
    past: PastTokens | None = None
    allowed: TokenBits | None = None

    def within(self, mask: bytes) -> "Draw":
        """This draw, from tokens of `mask` that it does not forbid. If it forbids them all, the mask alone
        decides: what obeys a grammar is more important than what is unwanted."""
        sampling, forbidden = self.sampling, set(self.forbidden)
        if sampling.rules is not None:
            forbidden |= forbidden_next(sampling.rules, self.past or PastTokens())
            sampling = sampling._replace(rules=sampling.rules._replace(forbidden=()))
        return Draw(sampling, self.position, (), self.past, without(mask, forbidden))


def draw_rows(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw a token for each of the first rows of `logits` `[row, vocabulary]`."""
    tokens: list[int] = likeliest(logits[: len(draws)]).tolist()
    for row, wanted in enumerate(draws):
        if wanted.sampling.rules is not None:
            changes = row_changes(wanted, logits.shape[-1])
            changed = _only_allowed(changed_row(logits[row], changes), wanted.allowed)
            tokens[row] = draw_token(changed, wanted.sampling, wanted.position)
        elif wanted.forbidden or wanted.allowed is not None or not wanted.sampling.is_greedy:
            left = _only_allowed(logits[row], wanted.allowed)
            tokens[row] = draw_token(left, wanted.sampling, wanted.position, wanted.forbidden)
    return tokens


def _only_allowed(logits: torch.Tensor, allowed: TokenBits | None) -> torch.Tensor:
    """One row of logits, -inf for tokens that are not allowed; a copy if there are any."""
    if allowed is None:
        return logits
    return logits.masked_fill(torch.from_numpy(~unpacked(allowed, logits.numel())), -torch.inf)


def row_changes(draw: Draw, n_tokens: int) -> LogitChanges:
    """What the rules of a draw, and its forbidden tokens, do to a row of `n_tokens` logits."""
    return changes_of(draw.sampling.rules, draw.past or PastTokens(), draw.forbidden, n_tokens)


def draw_token(
    logits: torch.Tensor, sampling: Sampling, position: int, forbidden: Collection[int] = ()
) -> int:
    """Draw the token at `position` from its logits `[vocabulary]`. `forbidden` tokens are never drawn.

    The largest logit is subtracted before the division, so that no temperature makes a score overflow. Ids in
    `forbidden` that are not in the vocabulary are ignored.
    """
    if forbidden:
        logits = logits.clone()
        logits[[token for token in forbidden if 0 <= token < logits.numel()]] = -torch.inf
    first = int(likeliest(logits))
    if sampling.is_greedy or not torch.isfinite(logits[first]):
        return first
    scores = (logits.float() - logits[first].float()) / sampling.temperature
    bits = noise.bits(sampling.seed, position, scores.numel())
    kept: torch.Tensor | None = None
    if 0 < sampling.top_k < scores.numel():
        kept = (scores >= torch.topk(scores, sampling.top_k).values[-1]).nonzero()[:, 0]
        scores = scores[kept]
    if sampling.top_p < 1.0:
        weights = torch.softmax(scores.double(), -1)
        likely = (weights >= _nucleus_threshold(weights, sampling.top_p)).nonzero()[:, 0]
        kept = likely if kept is None else kept[likely]
        scores = scores[likely]
    if sampling.min_p > 0.0:
        likely = (scores >= log(sampling.min_p)).nonzero()[:, 0]
        kept = likely if kept is None else kept[likely]
        scores = scores[likely]
    if kept is None:
        return int(likeliest(scores.sub_(noise.log_exponentials(bits))))
    return int(kept[likeliest(scores - noise.log_exponentials(bits[kept.numpy()]))])


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The index of the largest logit in each row of `[..., vocabulary]`.

    Uses `max`, since `argmax` in bfloat16 took 13 ms for 32 rows of 49,152 and this takes 1.
    """
    return logits.max(-1).indices


def _nucleus_threshold(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest weight in the smallest set of the likeliest tokens whose weights reach `top_p`.

    The first thousand are nearly always enough, and finding them costs a tenth of sorting a vocabulary of
    50,000.
    """
    for n in (min(_SORTED_FIRST, weights.numel()), weights.numel()):
        ranked = torch.topk(weights, n).values
        reached = (ranked.cumsum(-1) >= top_p).nonzero()
        if len(reached):
            return ranked[reached[0, 0]]
    return ranked[-1]
