"""What a row's draw depends on, and what it yields: values shared by the reference and the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


GREEDY_BELOW = 1e-5
"""A temperature below this takes the largest logit: dividing by less may overflow float32."""


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Sampling parameters, each a tensor `[row]`. A parameter is off at the value that changes nothing.

    `temperature` float32: below `GREEDY_BELOW` takes the largest logit. `top_k` int32: off at the vocabulary
    size. `top_p` float32: off at 1. `min_p` float32: off at 0. `seed` and `position` int64: a draw depends on
    these two and on the logits.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """`tokens` int64 `[row]`, their `log_probabilities` float32 `[row]`, and the n likeliest tokens of
    each row: `top_tokens` int64 and `top_log_probabilities` float32 `[row, n]`, largest first, the lower
    token first if equal."""

    tokens: torch.Tensor
    log_probabilities: torch.Tensor
    top_tokens: torch.Tensor
    top_log_probabilities: torch.Tensor
