"""Element-wise functions whose results do not depend on where an element lies in its array.

torch computes most elements of an array several at a time and the rest one by one, by other code that rounds
differently for some functions: in float32 for silu, sigmoid, softplus and gelu's approximation, in bfloat16
for rsqrt. Which elements are left over depends on how many there are, and on how they are divided among
threads: with 5 threads, 156,801 of the KV numbers of a prompt of 300 tokens differed alone and in company. So
arrays are padded until no thread has anything left over.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

_GELU_ALONE = 16384
"""Up to this number of elements gelu uses one thread, beyond it all of them."""

_FUNCTIONS = frozenset(
    (
        *(F.silu, F.gelu, F.mish, F.elu, F.selu, F.celu, F.softplus, F.logsigmoid, F.sigmoid, F.tanh),
        *(torch.sigmoid, torch.tanh, torch.exp, torch.expm1, torch.erf, torch.log, torch.log1p),
        *(torch.cos, torch.sin, torch.rsqrt),
        *(torch.Tensor.sigmoid, torch.Tensor.tanh, torch.Tensor.exp, torch.Tensor.log),
        *(torch.Tensor.cos, torch.Tensor.sin, torch.Tensor.rsqrt),
    )
)
"""Functions that modelling code calls. Sums, products, quotients and square roots are exact and need no
care."""

_EXACT_IN_FLOAT32 = (torch.rsqrt, torch.Tensor.rsqrt)


def is_rounded_by_place(function: Callable[..., object], dtype: torch.dtype) -> bool:
    """True if `function` of a tensor of `dtype` must go through `by_vectors`."""
    return function in _FUNCTIONS and not (function in _EXACT_IN_FLOAT32 and dtype == torch.float32)


def by_vectors(
    function: Callable[..., torch.Tensor], x: torch.Tensor, *arguments: object, **named: object
) -> torch.Tensor:
    """`function(x, ...)` such that the bits of every element depend on that element alone. Always a new
    tensor, even with `inplace`."""
    pad, cut = (_scripted_pad(), _scripted_cut()) if torch._C._get_tracing_state() else (_pad, _cut)
    padded = pad(x, torch.get_num_threads(), _GELU_ALONE if function is F.gelu else -1)
    return cut(function(padded, *arguments, **named | ({"inplace": False} if "inplace" in named else {})), x)


def padded_size(n: int, threads: int, alone: int) -> int:
    """The smallest number of elements, at least `n`, of which each of torch's threads gets whole vectors.

    Up to `alone` elements torch uses one thread, beyond that all of them; with `alone` negative, one per
    32,768 (`at::internal::GRAIN_SIZE`). A vector counts as 64 elements: two AVX-512 registers of bfloat16,
    which is what the loops process at once; other processors' vectors are shorter.
    """
    size = -1
    while size != n:
        if alone < 0:
            used = max(1, min(threads, (n + 32767) // 32768))
        else:
            used = threads if n > alone else 1
        size = n
        unit = 64 * used
        n = (n + unit - 1) // unit * unit
    return n


def _pad(x: torch.Tensor, threads: int, alone: int) -> torch.Tensor:
    n = x.numel()
    size = padded_size(n, threads, alone)
    if size == n:
        return x.contiguous()
    return torch.constant_pad_nd(x.reshape(-1), [0, size - n], 1.0)


def _cut(padded: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if padded.numel() == like.numel():
        return padded
    return padded[: like.numel()].view(like.size())


# As TorchScript, a recorded step keeps what depends on its number of rows.
@cache
def _scripted_pad() -> Callable[[torch.Tensor, int, int], torch.Tensor]:
    scripted: Callable[..., torch.Tensor] = torch.jit.script(_pad)
    return scripted


@cache
def _scripted_cut() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    scripted: Callable[..., torch.Tensor] = torch.jit.script(_cut)
    return scripted
