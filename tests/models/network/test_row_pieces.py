import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tokenmux.models.network.by_row import ByRow
from tokenmux.models.network.row_pieces import sizes_of_pieces
from tokenmux.models.network.rows import RowRule
from tokenmux.models.weights.packing import packed_product, packing_of


@given(n_rows=st.integers(0, 700), most=st.sampled_from([16, 32, 128]), share=st.integers(1, 8))
def test_no_piece_is_too_large_or_too_small(n_rows: int, most: int, share: int) -> None:
    least = max(1, most // 2 // share)
    sizes = sizes_of_pieces(n_rows, most, least)
    assert sum(sizes) == n_rows
    assert all(size <= most for size in sizes)
    assert n_rows < least or all(size >= least for size in sizes)


def test_every_way_to_a_product_is_cut() -> None:
    """A linear layer, a packed one and one of GPT-2's: none of them sees more rows than a piece has."""
    weight, bias = torch.randn(64, 128), torch.randn(64)
    x = torch.randn(1, 75, 128)
    expected = F.linear(x, weight, bias)
    with _Counting() as counted, ByRow(RowRule(2, 1, most=32)):
        assert torch.allclose(F.linear(x, weight, bias), expected, atol=1e-5)
        assert torch.allclose(torch.nn.Linear.forward(_layer(weight, bias), x), expected, atol=1e-5)
        assert torch.allclose(torch.addmm(bias, x[0], weight.T), expected[0], atol=1e-5)
    assert counted == 3 * [32, 32, 11]


@pytest.mark.skipif(packing_of(torch.bfloat16, (64, 128)) is None, reason="nothing is packed here")
def test_a_packed_product_is_cut() -> None:
    packing = packing_of(torch.bfloat16, (64, 128))
    assert packing is not None
    weight = torch.randn(64, 128).bfloat16()
    memory = weight.clone().view(-1).view(torch.uint8)
    packing.pack(memory)
    x = torch.randn(1, 75, 128).bfloat16()
    with ByRow(RowRule(2, 1, most=32)):
        cut = packed_product(x, packing.over(memory))
    pieces = [F.linear(piece, weight) for piece in x[0].split([32, 32, 11])]
    assert torch.equal(cut[0], torch.cat(pieces))


def _layer(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(128, 64)
    layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    return layer


class _Counting(TorchDispatchMode):
    """Rows of each product that is really computed."""

    def __enter__(self) -> list[int]:  # type: ignore[override]
        super().__enter__()
        self.rows: list[int] = []
        return self.rows

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.addmm.default:
            self.rows.append(len(args[1]))
        return func(*args, **(kwargs or {}))
