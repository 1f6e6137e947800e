"""Log-probabilities of drawn tokens and of the likeliest ones, from the logits of the model itself."""

from collections.abc import Sequence

import torch

from tokenmux.core.sampling import LogProbabilities
from tokenmux.models.sampling.draw import Draw


def log_probabilities(
    logits: torch.Tensor, tokens: Sequence[int], draws: Sequence[Draw]
) -> tuple[LogProbabilities | None, ...]:
    """What is told of each row of `logits` `[row, vocabulary]`, from which `tokens` were drawn; None for rows
    that ask for nothing."""
    return tuple(
        None
        if draw.sampling.n_likeliest is None
        else _of_row(logits[row].float(), tokens[row], draw.sampling.n_likeliest)
        for row, draw in enumerate(draws)
    )


def _of_row(logits: torch.Tensor, token: int, n: int) -> LogProbabilities:
    log_total = torch.logsumexp(logits, -1)
    if not n:
        return LogProbabilities(float(logits[token] - log_total))
    edge = torch.topk(logits, min(n, logits.numel())).values[-1]
    # topk promises no order of equal logits; a stable sort of all candidates does.
    candidates = (logits >= edge).nonzero()[:, 0]
    order = torch.sort(logits[candidates], descending=True, stable=True).indices[:n]
    likeliest = candidates[order]
    return LogProbabilities(
        float(logits[token] - log_total),
        tuple(zip(likeliest.tolist(), (logits[likeliest] - log_total).tolist(), strict=True)),
    )
