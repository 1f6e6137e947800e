"""How many rows a step must have so that matrix products treat every row alike.

A product's kernel is chosen by its number of rows, and two kernels round differently. So a request's row
could differ alone and in company. For each dtype this module finds the cheapest padding under which every row
of a product has the same bits whatever the number of rows. If no padding does that for every number of rows,
it finds the largest number for which one does: larger products are cut into pieces (`row_pieces.py`). A
result holds for the shapes and the number of threads that were tried, so every model's own shapes are tried,
once per process. It compares bits, never times, so its answer is reproducible.

Measured on an EPYC with avx512_bf16: bfloat16 needs two rows (one-row products differ), float32 a multiple of
four (the up to three rows beyond a multiple use another kernel if there are fewer than twelve). On a Xeon
with AMX, bfloat16 is exact up to 32 rows, one row included, and at no number of rows beyond; with 5 or 11
threads, some shapes only up to 17.

A GPU's library has too many kernels for that: there, every pass has exactly one number of rows
(`kernel_step.py`), and what remains to be checked is that a row's place in it makes no difference.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F

from tokenmux.core.errors import UnsupportedModel
from tokenmux.models.weights.packing import packed_product, packing_of


@dataclass(frozen=True, slots=True)
class Product:
    """What a library chooses a product's kernel by, besides the number of rows: a weight `[n, k]` (`[k,
    n]` if `transposed`)."""

    n: int
    k: int
    bias: bool = False
    transposed: bool = False


# Long sums show differences most often: in bfloat16 one of ten rows differed at 576 x 1536, none in 2,000 at
# 576 x 576.
_USUAL = frozenset((Product(96, 64), Product(576, 1536), Product(256, 4096)))
_LARGEST_WEIGHT = 1 << 28
"""In elements. A larger weight, which only the head of a large vocabulary has, would take more memory than
steps leave free."""

_N_ROWS = (
    *(1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 18, 20, 24, 31, 32, 33, 40, 48, 63, 64, 65),
    *(96, 127, 128, 160, 300, 512),
)
"""Numbers of rows that are tried: around those where kernels change. Making a kernel for one takes a
millisecond."""
_LARGE_WEIGHT = 1 << 22
_N_ROWS_OF_LARGE = (1, 2, 3, 4, 8, 9, 16, 17, 18, 24, 31, 32, 33, 40, 64, 128, 512)
_COMPARED = 64
"""Number of rows of a product whose bits are compared, and of the largest product in which they are moved to
other places."""


@dataclass(frozen=True, slots=True)
class RowRule:
    """Pad to at least `minimum` rows and to a multiple of `multiple`. Products take at most `most` rows at
    a time (None: no limit)."""

    minimum: int
    multiple: int
    most: int | None = None

    def padded(self, n_rows: int) -> int:
        """The number of rows with which a step of `n_rows` rows is computed, at least `n_rows`."""
        return max(self.minimum, -(-n_rows // self.multiple) * self.multiple)

    def fits_one_piece(self, n_rows: int) -> bool:
        """True if a product of `n_rows` rows is not cut."""
        return self.most is None or n_rows <= self.most


_PADDINGS = (RowRule(2, 1), RowRule(4, 4), RowRule(8, 8), RowRule(16, 16), RowRule(32, 32))
_MOST = (None, 128, 64, 32, 16, 8)


def candidates() -> Iterable[RowRule]:
    """Rules by cost: whole products before pieces, little padding before much."""
    for most in _MOST:
        for padding in _PADDINGS:
            if most is None or 2 * padding.minimum <= most:
                yield replace(padding, most=most)


def row_rule(dtype: torch.dtype, products: frozenset[Product] = frozenset()) -> RowRule:
    """The cheapest rule under which these products (by default some usual ones) are exact by row in `dtype`,
    on this process's threads.

    Takes half a second for those of a small model, nothing if they were tried before. Raises UnsupportedModel
    if they depend on the row count under every rule.
    """
    key = (dtype, products or _USUAL, torch.get_num_threads())
    return _known.get(key) or _row_rule(*key)


_known: dict[tuple[torch.dtype, frozenset[Product], int], RowRule] = {}


def know_rule(dtype: torch.dtype, products: frozenset[Product], rule: RowRule) -> None:
    """Take the rule for these products from someone who found it for as many threads on this machine."""
    _known[dtype, products or _USUAL, torch.get_num_threads()] = rule


@cache
def _row_rule(dtype: torch.dtype, products: frozenset[Product], n_threads: int) -> RowRule:
    smallest_first = sorted(products, key=lambda kind: (kind.n * kind.k, str(kind)))
    looked_at = [kind for kind in smallest_first if kind.n * kind.k <= _LARGEST_WEIGHT]
    for rule in candidates():
        if all(_fits(rule, dtype, kind, n_threads) for kind in looked_at):
            return rule
    raise UnsupportedModel(
        f"products in {dtype} with {n_threads} threads on this machine depend on the number of rows "
        "however they are "
        "padded, so a request's tokens would depend on other requests; set OMP_NUM_THREADS to a power "
        "of two, or "
        "register the model in another dtype"
    )


def _fits(rule: RowRule, dtype: torch.dtype, kind: Product, n_threads: int) -> bool:
    """True if one kind of product is exact under the rule, plain and packed. `n_threads` is torch's
    present number of threads."""
    return all(
        bits is None or _agree(bits, rule)
        for bits in (_bits(dtype, kind, n_threads, packed) for packed in (False, True))
    )


Bits = Mapping[int, tuple[int, ...]]
"""By number of rows in a product, a hash of the bits of each of the first rows; none if a row's place in it
matters."""


def _agree(bits: Bits, rule: RowRule) -> bool:
    """True if a row has the same bits in every product that the rule allows."""
    allowed = [n for n in bits if n >= rule.minimum and n % rule.multiple == 0 and rule.fits_one_piece(n)]
    reference = bits[max(allowed)]
    return all(bits[n] and bits[n] == reference[: len(bits[n])] for n in allowed)


@cache
def _bits(dtype: torch.dtype, kind: Product, n_threads: int, packed: bool) -> Bits | None:
    """The bits of the same rows in products with various numbers of rows. None if there is no such
    product."""
    x, weight = _operands(dtype, "cpu", kind)
    product = _packed_linear(weight) if packed else _linear(weight, kind)
    if product is None:
        return None
    counts = _N_ROWS if kind.n * kind.k <= _LARGE_WEIGHT else _N_ROWS_OF_LARGE
    return {n: _bits_of_rows(product, x[:n].clone()) for n in counts}


def _bits_of_rows(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[int, ...]:
    bits = _hashes(product(x))
    shifts = {1, len(x) // 2, len(x) - 1} if 1 < len(x) <= _COMPARED else ()
    if any(_hashes(product(x.roll(shift, 0)).roll(-shift, 0)) != bits for shift in shifts):
        return ()
    return bits


def _hashes(results: torch.Tensor) -> tuple[int, ...]:
    rows = results[:_COMPARED].contiguous().view(torch.uint8).numpy()
    return tuple(hash(row.tobytes()) for row in rows)


def _operands(dtype: torch.dtype, device: str, kind: Product) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and a weight whose products reveal the order of summation.

    With random numbers, three results in 98,304 differed between two kernels in bfloat16: rounding hides the
    order. Here most terms of a sum come in pairs of opposite sign, 2^14 times as large as what remains, so
    that what is lost on the way is as large as the result's last bits.
    """
    half = kind.k // 2
    paired = half * 3 // 4
    x = _random(torch.float32, device, max(_N_ROWS), kind.k)
    weight = _random(torch.float32, device, kind.n, kind.k)
    x[:, :paired] *= 1 << 14
    x[:, half : half + paired] = x[:, :paired]
    weight[:, half : half + paired] = -weight[:, :paired]
    if dtype == torch.float16:
        x *= 2.0**-14  # otherwise sums overflow
    return x.to(dtype), weight.to(dtype)


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
        elif hasattr(module, "is_transposed"):  # experts, each with a weight of its own
            for stacked in (p for p in module._parameters.values() if p is not None and p.ndim == 3):
                rows, columns = stacked.shape[1:]
                n, k = (columns, rows) if module.is_transposed else (rows, columns)
                found.add(Product(n, k, transposed=bool(module.is_transposed)))
    return frozenset(found)


@cache
def check_rows_of(
    n_rows: int, dtype: torch.dtype, device: str, products: frozenset[Product] = frozenset()
) -> None:
    """Raise UnsupportedModel unless products are exact by row on a device whose passes have exactly `n_rows`
    rows.

    A row must have the same bits wherever it stands among `n_rows` rows and whatever the others hold. Checks
    a few usual products, and those of the model.
    """
    for kind in sorted(_USUAL | products, key=str):
        if kind.n * kind.k > _LARGEST_WEIGHT:
            continue
        rows, weight = _operands(dtype, device, kind)
        x, product = rows[:n_rows], _linear(weight, kind)
        expected = product(x)
        for shift in range(1, n_rows, 5):
            if not torch.equal(product(x.roll(shift, 0)).roll(-shift, 0), expected):
                raise UnsupportedModel(
                    f"products in {dtype} of {n_rows} rows on this device depend on the place of a "
                    f"row ({kind}), so a "
                    "request's tokens would depend on other requests; register the model in another dtype"
                )


@cache
def grouped_experts_are_exact(dtype: torch.dtype, device: str = "cpu") -> bool:
    """True if an expert's rows in a grouped product have the same bits whatever their number (it cannot be
    padded)."""
    x, matrix = _operands(dtype, device, Product(256, 2048))
    weight = matrix.T.contiguous()[None]

    def product(rows: torch.Tensor) -> torch.Tensor:
        ends = torch.tensor([len(rows)], dtype=torch.int32, device=device)
        return F.grouped_mm(rows, weight, offs=ends)

    try:
        expected = product(x[:128])
        return all(torch.equal(product(x[:n].clone()), expected[:n]) for n in _N_ROWS if n <= 128)
    except RuntimeError:
        return False  # the device has no grouped product in this dtype


def _linear(weight: torch.Tensor, kind: Product) -> Callable[[torch.Tensor], torch.Tensor]:
    added = _random(weight.dtype, weight.device.type, kind.n) if kind.bias else None
    if kind.transposed:
        columns = weight.T.contiguous()
        return lambda x: x @ columns if added is None else torch.addmm(added, x, columns)
    return lambda x: F.linear(x, weight, added)


def _packed_linear(plain: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A product with the weight packed, or None if such weights are not packed."""
    packing = packing_of(plain.dtype, tuple(plain.shape))
    if packing is None:
        return None
    memory = plain.view(-1).view(torch.uint8)
    packing.pack(memory)
    weight = packing.over(memory)
    # `memory` is bound here so that it lives as long as the weight over it.
    return lambda x, memory=memory: packed_product(x, weight)  # type: ignore[misc]


def _random(dtype: torch.dtype, device: str, *shape: int) -> torch.Tensor:
    """Random numbers, the same each time; beyond 4,096 of the first dimension they repeat. For a GPU they
    are drawn on it: a host takes seconds for many."""
    generator = torch.Generator(device).manual_seed(0)
    drawn = torch.float32 if device == "cpu" else dtype
    size = (min(shape[0], 4096), *shape[1:])
    numbers = torch.randn(*size, generator=generator, device=device, dtype=drawn).to(dtype)
    return numbers.repeat(-(-shape[0] // 4096), *(1 for _ in shape[1:]))[: shape[0]].contiguous()
