"""The random numbers of a draw, on the host: the one definition that the CPU uses and the kernels follow.

Token v of the vocabulary has 32 random bits that depend only on (seed, position, v), from the counter-based
generator Philox4x64-10 (Salmon et al., SC 2011), which numpy has in C:

    key        seed, 0
    counter    v // 8 + 1, position, 0, 0
    bits       of the four 64-bit words, word v % 8 // 2: its low half for even v, its high half for odd v
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

_WORD = (1 << 64) - 1


def bits(seed: int, position: int, vocabulary: int) -> npt.NDArray[np.uint32]:
    """The 32 bits of each token. `seed` and `position` count modulo 2**64."""
    generator = np.random.Philox(key=seed & _WORD, counter=(position & _WORD) << 64)
    words = generator.random_raw(-(-vocabulary // 2))
    return words.astype("<u8", copy=False).view("<u4")[:vocabulary]


def exponentials(seed: int, position: int, vocabulary: int) -> torch.Tensor:
    """E_v of each token, exponentially distributed: `-log(1 - u)`, u = (bits + 1/2) / 2**32, in float64.

    Winners have a small E, and a small u is exact to the last bit, so that 32 bits are enough for any
    vocabulary.
    """
    return -torch.log1p(
        -(torch.from_numpy(bits(seed, position, vocabulary).astype(np.float64)) + 0.5) / 2**32
    )


def log_exponentials(drawn: npt.NDArray[np.uint32]) -> torch.Tensor:
    """log E of these bits, in float32, as the kernels compute it."""
    u = torch.from_numpy(drawn.astype(np.float32)).add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_()
