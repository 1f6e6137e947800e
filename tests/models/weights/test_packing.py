"""Packed weights: the same bytes rearranged in place, the same bits out of every product, and nothing
where it cannot be had."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tokenmux.models.weights import packing
from tokenmux.models.weights.packing import PackedLinear, packed_product, packing_of

needs_packing = pytest.mark.skipif(
    packing_of(torch.bfloat16, (128, 192)) is None, reason="this machine's torch packs no weights"
)


def memory_of(weight: torch.Tensor) -> torch.Tensor:
    return weight.clone().view(-1).view(torch.uint8)


@needs_packing
@pytest.mark.parametrize("shape", [(64, 64), (128, 192), (960, 576), (576, 1536), (320, 128)])
@pytest.mark.parametrize("n_rows", [1, 2, 7, 33])
def test_a_packed_product_has_the_bits_of_the_plain_one(shape: tuple[int, int], n_rows: int) -> None:
    generator = torch.Generator().manual_seed(n_rows)
    weight, bias, x = (
        torch.randn(size, generator=generator).bfloat16()
        for size in (shape, shape[:1], (1, n_rows, shape[1]))
    )
    packed = packing_of(torch.bfloat16, shape)
    assert packed is not None
    memory = memory_of(weight)
    packed.pack(memory)
    assert not torch.equal(memory, memory_of(weight))
    for b in (None, bias):
        assert torch.equal(packed_product(x, packed.over(memory), b), F.linear(x, weight, b))


@needs_packing
def test_a_packed_weight_follows_its_memory() -> None:
    """It is a view: what is copied into the memory later is what is multiplied."""
    one, other = (torch.full((128, 192), value).bfloat16() for value in (1.0, 2.0))
    packed = packing_of(torch.bfloat16, (128, 192))
    assert packed is not None
    memory, new = memory_of(one), memory_of(other)
    packed.pack(memory)
    packed.pack(new)
    weight = packed.over(memory)
    memory.copy_(new)
    x = torch.ones(2, 192).bfloat16()
    assert torch.equal(packed_product(x, weight), F.linear(x, other))


@needs_packing
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_product_can_be_recorded_for_any_number_of_rows() -> None:
    layer = nn.Linear(192, 128, bias=False).bfloat16()
    plain = layer.weight.detach().clone()
    layer.__class__ = PackedLinear
    packed = packing_of(torch.bfloat16, (128, 192))
    assert packed is not None
    memory = memory_of(plain)
    packed.pack(memory)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        layer._parameters["weight"] = weight
        return layer(x)

    graph = torch.jit.trace(run, (torch.ones(3, 192).bfloat16(), packed.over(memory)), check_trace=False)
    x = torch.randn(9, 192, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(graph(x, packed.over(memory)), F.linear(x, plain))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.float32, (128, 192)), (torch.bfloat16, (128,)), (torch.bfloat16, (96, 50))],
    ids=["another type", "no matrix", "not whole tiles"],
)
def test_what_cannot_be_packed_stays_as_it_is(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    assert packing_of(dtype, shape) is None


def test_nothing_is_packed_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such function")

    monkeypatch.setattr(packing, "_view", fails)
    for cached in (packing._works, packing_of):
        cached.cache_clear()
    try:
        assert packing_of(torch.bfloat16, (128, 192)) is None
    finally:
        for cached in (packing._works, packing_of):
            cached.cache_clear()


def test_a_packed_weight_is_all_that_keeps_itself() -> None:
    """An activation makes hundreds of them; one reference too many is kilobytes that never come back."""
    packed = packing_of(torch.bfloat16, (96, 64))
    if packed is None:
        pytest.skip("nothing is packed here")
    memory = torch.zeros(96 * 64 * 2, dtype=torch.uint8)
    packed.pack(memory)
    assert packed.over(memory)._use_count() == 1
