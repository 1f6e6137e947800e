"""What a request's rules do to its logits, as a list of tokens with numbers: the same arithmetic, in float32,
on a processor and on a GPU.

Most of a vocabulary is not affected, so only the affected logits are read and written. The list is made on
the host from token ids alone: a swap, a move or a recovery cannot change it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tokenmux.core.sampling import NO_RULES, LogitRules
from tokenmux.models.sampling.past_tokens import PastTokens


@dataclass(frozen=True, slots=True)
class LogitChanges:
    """For each affected token of one row: logit + `added`, then divided or multiplied by `penalty`, then less
    `subtracted`. An `added` of -inf forbids the token. `tokens` are distinct."""

    tokens: npt.NDArray[np.int64]
    added: npt.NDArray[np.float32]
    penalty: npt.NDArray[np.float32]
    subtracted: npt.NDArray[np.float32]


def changes_of(
    rules: LogitRules | None, past: PastTokens, forbidden: Collection[int], n_tokens: int
) -> LogitChanges:
    """What `rules` change in a row of `n_tokens` logits after `past`. Tokens of `forbidden` cannot be drawn
    either; ids that the vocabulary does not have are ignored."""
    rules = rules or NO_RULES
    banned = {*forbidden, *forbidden_next(rules, past)}
    seen = past.seen() if rules.look_at_prompt else np.empty(0, np.int64)
    drawn, counts = past.drawn()
    biased = [token for token, _ in rules.bias]
    asked = [token for token in (*biased, *banned) if 0 <= token < n_tokens]
    tokens = np.unique(np.concatenate((seen, drawn, np.array(asked, np.int64))))
    tokens = tokens[(tokens >= 0) & (tokens < n_tokens)]
    place = {int(token): index for index, token in enumerate(tokens)}
    added = np.zeros(len(tokens), np.float32)
    for token, bias in rules.bias:
        if token in place:
            added[place[token]] += bias
    added[[place[token] for token in banned if token in place]] = -np.inf
    penalty = np.ones(len(tokens), np.float32)
    penalty[np.isin(tokens, seen)] = rules.repetition_penalty
    subtracted = np.zeros(len(tokens), np.float32)
    known = [place[int(token)] for token in drawn if int(token) in place]
    counted = counts[(drawn >= 0) & (drawn < n_tokens)]
    subtracted[known] = np.float32(rules.frequency_penalty) * counted + np.float32(rules.presence_penalty)
    return LogitChanges(tokens, added, penalty, subtracted)


def forbidden_next(rules: LogitRules, past: PastTokens) -> set[int]:
    """The tokens that would complete a forbidden sequence."""
    return {sequence[-1] for sequence in rules.forbidden if past.ends_with(sequence[:-1])}


def change(
    logits: torch.Tensor, added: torch.Tensor, penalty: torch.Tensor, subtracted: torch.Tensor
) -> torch.Tensor:
    """New values of affected float32 `logits`, element by element."""
    biased = logits + added
    return torch.where(biased > 0, biased / penalty, biased * penalty) - subtracted


def changed_row(logits: torch.Tensor, changes: LogitChanges) -> torch.Tensor:
    """A float32 copy of one row of logits on a processor, changed."""
    row = logits.float() if logits.dtype != torch.float32 else logits.clone()
    if len(changes.tokens):
        tokens = torch.from_numpy(changes.tokens)
        numbers = map(torch.from_numpy, (changes.added, changes.penalty, changes.subtracted))
        row[tokens] = change(row[tokens], *numbers)
    return row
