"""How many rows a step must have so that matrix products treat every row alike.

A product's kernel is chosen by its number of rows, and two kernels round differently. So the row of a request could come
out differently alone and in company. For each dtype this module finds, once per process, the cheapest padding under which
every row of a product has the same bits whatever the number of rows. It compares bits, never times, so its answer is
reproducible. A GPU's library has too many kernels for that: there, every pass has exactly one number of rows (`kernel_step.py`)
and what remains to be checked is that a row's place in it makes no difference. Measured on an EPYC with avx512_bf16: bfloat16 needs two rows (one-row products differ), float32 a multiple of
four (the up to three rows beyond a multiple take another kernel when there are fewer than twelve).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from tokenmux.engine.core.errors import UnsupportedModel
from tokenmux.engine.models.packing import packed_product, packing_of

# Long sums show a difference most often: in bfloat16 one of ten rows differed at 576 x 1536, none in 2,000 at 576 x 576.
_SHAPES = ((96, 64), (576, 1536), (256, 4096))
_N_ROWS = 96
_LARGEST_STEP = 40


@dataclass(frozen=True, slots=True)
class RowRule:
    """Pad to at least `minimum` rows and to a multiple of `multiple`."""

    minimum: int
    multiple: int

    def padded(self, n_rows: int) -> int:
        """The number of rows, at least `n_rows`, that a step of `n_rows` rows is computed with."""
        return max(self.minimum, -(-n_rows // self.multiple) * self.multiple)


_CANDIDATES = (RowRule(2, 1), RowRule(4, 4), RowRule(8, 8), RowRule(16, 16), RowRule(32, 32))


@cache
def row_rule(dtype: torch.dtype, device: str = "cpu") -> RowRule:
    """The cheapest rule under which linear layers are exact by row in `dtype`.

    Raises UnsupportedModel when the machine's products depend on the row count under every rule.
    """
    products = [(_linear(dtype, device, n, k), k) for n, k in _SHAPES]
    products += [(p, k) for n, k in _SHAPES if device == "cpu" and (p := _packed_linear(dtype, n, k))]
    for rule in _CANDIDATES:
        if all(_is_exact(product, k, dtype, device, rule) for product, k in products):
            return rule
    raise UnsupportedModel(
        f"products in {dtype} on this machine depend on the number of rows however they are padded, so a request's "
        "tokens would depend on its company; register the model in another dtype"
    )


@cache
def check_rows_of(n_rows: int, dtype: torch.dtype, device: str) -> None:
    """For a device whose steps have passes of exactly `n_rows` rows: raise UnsupportedModel unless products are exact by row.

    A row must have the same bits wherever it stands among `n_rows` rows and whatever stands in the others.
    """
    for n, k in _SHAPES:
        product = _linear(dtype, device, n, k)
        x = _random(dtype, device, n_rows, k)
        expected = product(x)
        for shift in range(1, n_rows, 5):
            if not torch.equal(product(x.roll(shift, 0)).roll(-shift, 0), expected):
                raise UnsupportedModel(
                    f"products in {dtype} of {n_rows} rows on this device depend on the place of a row, so a request's "
                    "tokens would depend on its company; register the model in another dtype"
                )


@cache
def grouped_experts_are_exact(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether one expert's rows in a grouped product have the same bits whatever their number (it cannot be padded)."""
    n, k = 256, 2048
    weight = _random(dtype, device, 1, k, n)

    def product(x: torch.Tensor) -> torch.Tensor:
        ends = torch.tensor([len(x)], dtype=torch.int32, device=device)
        return F.grouped_mm(x, weight, offs=ends)

    try:
        return _is_exact(product, k, dtype, device, RowRule(1, 1))
    except RuntimeError:
        return False  # the device has no grouped product in this dtype


def _linear(dtype: torch.dtype, device: str, n: int, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = _random(dtype, device, n, k)
    return lambda x: F.linear(x, weight)


def _packed_linear(dtype: torch.dtype, n: int, k: int) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The same with the weight packed, if weights like it are."""
    packing = packing_of(dtype, (n, k))
    if packing is None:
        return None
    memory = _random(dtype, "cpu", n, k).view(-1).view(torch.uint8)
    packing.pack(memory)
    weight = packing.over(memory)
    # `memory` is named so that it lives as long as the weight over it.
    return lambda x, memory=memory: packed_product(x, weight)  # type: ignore[misc]


def _is_exact(
    product: Callable[[torch.Tensor], torch.Tensor], k: int, dtype: torch.dtype, device: str, rule: RowRule
) -> bool:
    """Whether all rows of `product` come out as in one large product when computed in steps of every size up to 40."""
    x = _random(dtype, device, _N_ROWS, k)
    expected = product(x)
    for n in sorted({rule.padded(n) for n in range(1, _LARGEST_STEP + 1)}):
        for start in range(0, _N_ROWS - n + 1, n):
            rows = slice(start, start + n)
            if not torch.equal(product(x[rows].clone()), expected[rows]):
                return False
    return True


def _random(dtype: torch.dtype, device: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)
