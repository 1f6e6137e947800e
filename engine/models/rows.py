"""How many rows a step must have so that matrix products treat every row alike.

A product's kernel is chosen by its number of rows, and two kernels round differently. So the row of a request could come
out differently alone and in company. For each dtype this module finds the cheapest padding under which every row of a product has
the same bits whatever the number of rows, and, where no padding does that for every number of rows, the largest number of rows for
which one does: products of more are cut into pieces (`pieces.py`). What is found holds for the shapes that were looked at and the
number of threads that did, so every model's own shapes are looked at, once in a process. It compares bits, never times, so its answer
is reproducible.

Measured on an EPYC with avx512_bf16: bfloat16 needs two rows (one-row products differ), float32 a multiple of four (the up to three
rows beyond a multiple take another kernel when there are fewer than twelve). On a Xeon with AMX, bfloat16 is exact up to 32 rows, one
row included, and at no number of rows beyond; with 5 or 11 threads, some shapes only up to 17.

A GPU's library has too many kernels for that: there, every pass has exactly one number of rows (`kernel_step.py`) and what remains to
be checked is that a row's place in it makes no difference.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F

from tokenmux.engine.core.errors import UnsupportedModel
from tokenmux.engine.models.packing import packed_product, packing_of


@dataclass(frozen=True, slots=True)
class Product:
    """What a library chooses a product's kernel by, beside the number of rows: a weight `[n, k]` (`[k, n]` if `transposed`)."""

    n: int
    k: int
    bias: bool = False
    transposed: bool = False


# Long sums show a difference most often: in bfloat16 one of ten rows differed at 576 x 1536, none in 2,000 at 576 x 576.
_USUAL = frozenset((Product(96, 64), Product(576, 1536), Product(256, 4096)))
_N_ROWS = 96
_N_RESULTS = 1 << 18
"""Results that are compared for each number of rows, if 1,024 rows have so many: of 98,304 at 192 x 576, three differed."""
_LARGEST_STEP = 40
_LONG = 600
"""Rows of a long prompt's step: numbers of rows are checked one by one up to the largest step, then in strides up to so many."""
_STRIDE = 77
_LARGEST_WEIGHT = 1 << 28
"""Elements. A larger one, which only the head of a large vocabulary has, would take more memory than steps leave free."""
_SMALL = 1 << 22
_EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 18, 20, 24, 31, 32, 33, 40, 63, 64, 65, 127, 128)
"""Of layers with more weights than the small ones have, not every number of rows is checked, but those where kernels change."""


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


_PADDINGS = (RowRule(2, 1), RowRule(4, 4), RowRule(8, 8), RowRule(16, 16), RowRule(32, 32))
_MOST = (None, 128, 64, 32, 16, 8)


def _candidates() -> Iterable[RowRule]:
    """Whole products before pieces, little padding before much."""
    for most in _MOST:
        for padding in _PADDINGS:
            if most is None or 2 * padding.minimum <= most:
                yield replace(padding, most=most)


def row_rule(dtype: torch.dtype, products: frozenset[Product] = frozenset()) -> RowRule:
    """The cheapest rule under which these products are exact by row in `dtype`, on a processor and this process's threads.

    Takes a second or two for those of a small model, nothing when they were seen before. Raises UnsupportedModel when they depend on
    the row count under every rule.
    """
    return _row_rule(dtype, _USUAL | products, torch.get_num_threads())


@cache
def _row_rule(dtype: torch.dtype, products: frozenset[Product], n_threads: int) -> RowRule:
    smallest_first = sorted(products, key=lambda kind: (kind.n * kind.k, str(kind)))
    looked_at = [kind for kind in smallest_first if kind.n * kind.k <= _LARGEST_WEIGHT]
    for rule in _candidates():
        if all(_fits(rule, dtype, kind, n_threads) for kind in looked_at):
            return rule
    raise UnsupportedModel(
        f"products in {dtype} with {n_threads} threads on this machine depend on the number of rows however they are "
        "padded, so a request's tokens would depend on its company; set OMP_NUM_THREADS to a power of two, or "
        "register the model in another dtype"
    )


@cache
def _fits(rule: RowRule, dtype: torch.dtype, kind: Product, n_threads: int) -> bool:
    """Whether one kind of product is exact under the rule, as it is and packed. `n_threads` is what torch has now."""
    products = [_linear(dtype, "cpu", kind.n, kind.k, bias=kind.bias, transposed=kind.transposed)]
    packed = None if kind.transposed else _packed_linear(dtype, kind.n, kind.k)
    if packed is not None:
        products.append(packed)
    return all(_is_exact(product, kind, dtype, "cpu", rule) for product in products)


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
        return _is_exact(product, Product(n, k), dtype, device, RowRule(1, 1))
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
    product: Callable[[torch.Tensor], torch.Tensor],
    kind: Product,
    dtype: torch.dtype,
    device: str,
    rule: RowRule,
) -> bool:
    """Whether the rows of `product` have the same bits in steps of every size that it is computed in.

    Every number of rows up to that of a piece, or up to 40 and in strides beyond where there are no pieces.
    """
    n_outputs, n_inputs = kind.n, kind.k
    n_most = rule.most or _LARGEST_STEP
    n_rows = max(_N_ROWS, n_most, min(1024, _N_RESULTS // n_outputs // n_most * n_most))
    x = _random(dtype, device, n_rows, n_inputs)
    expected = torch.cat([product(piece.clone()) for piece in torch.split(x, rule.most or len(x))])
    counts = range(1, n_most + 1) if n_outputs * n_inputs <= _SMALL else [n for n in _EDGES if n <= n_most]
    for n in sorted({rule.padded(n) for n in counts}):
        for start in range(0, len(x) - n + 1, n):
            rows = slice(start, start + n)
            if not torch.equal(product(x[rows].clone()), expected[rows]):
                return False
    if rule.most is not None:
        return True
    long = _random(dtype, device, _LONG, n_inputs)
    expected = product(long)
    return all(
        torch.equal(product(long[:n].clone()), expected[:n])
        for n in (rule.padded(n) for n in range(_LARGEST_STEP, _LONG, _STRIDE))
    )


def _random(dtype: torch.dtype, device: str, *shape: int) -> torch.Tensor:
    """The same numbers each time; beyond 4,096 of the first dimension they repeat. On a GPU drawn there: a host takes seconds for many."""
    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.float32 if device == "cpu" else dtype
    size = (min(shape[0], 4096), *shape[1:])
    numbers = torch.randn(*size, generator=generator, device=device, dtype=drawn).to(dtype)
    return numbers.repeat(-(-shape[0] // 4096), *(1 for _ in shape[1:]))[: shape[0]].contiguous()
