"""How many rows a step must have so that matrix products treat every row alike.

A product's kernel is chosen by its number of rows, and two kernels round differently. So the row of a request could come
out differently alone and in company. For each dtype this module finds, once per process, the cheapest padding under which
every row of a product has the same bits whatever the number of rows, and, where no padding does that for every number of rows, the
largest number of rows for which one does: products of more are cut into pieces (`pieces.py`). It compares bits, never times, so its
answer is reproducible. A GPU's library has too many kernels for that: there, every pass has exactly one number of rows (`kernel_step.py`)
and what remains to be checked is that a row's place in it makes no difference. Measured on an EPYC with avx512_bf16: bfloat16 needs two rows (one-row products differ), float32 a multiple of
four (the up to three rows beyond a multiple take another kernel when there are fewer than twelve). On a Xeon with AMX, bfloat16 is
exact up to 32 rows, one row included, and at no number of rows beyond.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F

from tokenmux.engine.core.errors import UnsupportedModel
from tokenmux.engine.models.packing import packed_product, packing_of
from tokenmux.engine.models.pieces import InPieces

# Long sums show a difference most often: in bfloat16 one of ten rows differed at 576 x 1536, none in 2,000 at 576 x 576.
_SHAPES = ((96, 64), (576, 1536), (256, 4096))
_N_ROWS = 96
_LARGEST_STEP = 40
_LONG = 600
"""Rows of a long prompt's step: numbers of rows are checked one by one up to the largest step, then in strides up to so many."""
_STRIDE = 77


@dataclass(frozen=True, slots=True)
class RowRule:
    """Pad to at least `minimum` rows and to a multiple of `multiple`; products take at most `most` rows at a time (None: all)."""

    minimum: int
    multiple: int
    most: int | None = None

    def padded(self, n_rows: int) -> int:
        """The number of rows, at least `n_rows`, that a step of `n_rows` rows is computed with."""
        return max(self.minimum, -(-n_rows // self.multiple) * self.multiple)

    def fits_one_piece(self, n_rows: int) -> bool:
        """Whether a product of so many rows is not cut."""
        return self.most is None or n_rows <= self.most

    def cutting(self, n_rows: int) -> AbstractContextManager[object]:
        """While entered, linear layers of a step of `n_rows` rows are computed in pieces, if they must be."""
        if self.most is None or n_rows <= self.most:
            return nullcontext()
        return InPieces(self.most, self.minimum)


_PADDINGS = (RowRule(2, 1), RowRule(4, 4), RowRule(8, 8), RowRule(16, 16), RowRule(32, 32))
_MOST = (None, 128, 64, 32, 16)


def _candidates() -> Iterable[RowRule]:
    """Whole products before pieces, little padding before much."""
    for most in _MOST:
        for padding in _PADDINGS:
            if most is None or 2 * padding.minimum <= most:
                yield replace(padding, most=most)


@cache
def row_rule(dtype: torch.dtype, device: str = "cpu") -> RowRule:
    """The cheapest rule under which linear layers are exact by row in `dtype`.

    Raises UnsupportedModel when the machine's products depend on the row count under every rule.
    """
    products = [(_linear(dtype, device, n, k), k) for n, k in _SHAPES]
    products += [(p, k) for n, k in _SHAPES if device == "cpu" and (p := _packed_linear(dtype, n, k))]
    for rule in _candidates():
        if all(_is_exact(product, k, dtype, device, rule) for product, k in products):
            return rule
    raise UnsupportedModel(
        f"products in {dtype} on this machine depend on the number of rows however they are padded, so a request's "
        "tokens would depend on its company; register the model in another dtype"
    )


@dataclass(frozen=True, slots=True)
class Product:
    """What a library chooses a product's kernel by, beside the number of rows: a weight `[n, k]` (`[k, n]` if `transposed`)."""

    n: int
    k: int
    bias: bool = False
    transposed: bool = False


_USUAL = frozenset(Product(n, k) for n, k in _SHAPES)

_LARGEST_WEIGHT = 1 << 28
"""Elements. A larger one, which only the head of a large vocabulary has, would take more memory than steps leave free."""


def products_of(model: torch.nn.Module) -> frozenset[Product]:
    """The distinct products of the model's layers."""
    found = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        bias = getattr(module, "bias", None) is not None
        if isinstance(module, torch.nn.Linear):
            found.add(Product(module.weight.shape[0], module.weight.shape[1], bias))
        elif type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor):
            found.add(Product(weight.shape[1], weight.shape[0], bias, transposed=True))
    return frozenset(found)


@cache
def check_rows_of(
    n_rows: int, dtype: torch.dtype, device: str, products: frozenset[Product] = frozenset()
) -> None:
    """For a device whose steps have passes of exactly `n_rows` rows: raise UnsupportedModel unless products are exact by row.

    A row must have the same bits wherever it stands among `n_rows` rows and whatever stands in the others. Looked at are a few
    usual products, and those of the model.
    """
    for kind in sorted(_USUAL | products, key=str):
        if kind.n * kind.k > _LARGEST_WEIGHT:
            continue
        product = _linear(dtype, device, kind.n, kind.k, bias=kind.bias, transposed=kind.transposed)
        x = _random(dtype, device, n_rows, kind.k)
        expected = product(x)
        for shift in range(1, n_rows, 5):
            if not torch.equal(product(x.roll(shift, 0)).roll(-shift, 0), expected):
                raise UnsupportedModel(
                    f"products in {dtype} of {n_rows} rows on this device depend on the place of a row ({kind}), so a "
                    "request's tokens would depend on its company; register the model in another dtype"
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


def _linear(
    dtype: torch.dtype, device: str, n: int, k: int, *, bias: bool = False, transposed: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    added = _random(dtype, device, n) if bias else None
    if transposed:
        columns = _random(dtype, device, k, n)
        return lambda x: x @ columns if added is None else torch.addmm(added, x, columns)
    weight = _random(dtype, device, n, k)
    return lambda x: F.linear(x, weight, added)


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
    """Whether the rows of `product` have the same bits in steps of every size that it is computed in.

    Every number of rows up to that of a piece, or up to 40 and in strides beyond where there are no pieces.
    """
    n_most = rule.most or _LARGEST_STEP
    x = _random(dtype, device, max(_N_ROWS, n_most), k)
    expected = torch.cat([product(piece.clone()) for piece in torch.split(x, rule.most or len(x))])
    for n in sorted({rule.padded(n) for n in range(1, n_most + 1)}):
        for start in range(0, len(x) - n + 1, n):
            rows = slice(start, start + n)
            if not torch.equal(product(x[rows].clone()), expected[rows]):
                return False
    if rule.most is not None:
        return True
    long = _random(dtype, device, _LONG, k)
    expected = product(long)
    return all(
        torch.equal(product(long[:n].clone()), expected[:n])
        for n in (rule.padded(n) for n in range(_LARGEST_STEP, _LONG, _STRIDE))
    )


def _random(dtype: torch.dtype, device: str, *shape: int) -> torch.Tensor:
    """The same numbers each time. On a GPU drawn there: a host takes seconds for the weight of a large layer."""
    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.float32 if device == "cpu" else dtype
    return torch.randn(*shape, generator=generator, device=device, dtype=drawn).to(dtype)
