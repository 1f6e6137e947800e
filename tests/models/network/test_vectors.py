"""Element-wise functions by threads and places. torch's number of threads may be larger than the machine's
cores."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmux.models.network.by_row import ByRow
from tokenmux.models.network.rows import RowRule
from tokenmux.models.network.vectors import by_vectors, is_rounded_by_place, padded_size

FUNCTIONS = [F.silu, F.gelu, torch.sigmoid, torch.tanh, torch.exp, torch.cos, torch.sin, F.softplus, F.mish]
DTYPES = [torch.float32, torch.bfloat16]
THREADS = [1, 2, 3, 5, 7]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@given(n=st.integers(0, 1 << 22), threads=st.integers(1, 256), alone=st.sampled_from([-1, 16384]))
def test_every_thread_gets_whole_vectors(n: int, threads: int, alone: int) -> None:
    size = padded_size(n, threads, alone)
    if alone < 0:
        used = max(1, min(threads, -(-size // 32768)))
    else:
        used = threads if size > alone else 1
    assert size >= n
    assert size % (64 * used) == 0
    assert size - n < 2 * 64 * threads


@settings(max_examples=25)
@given(
    function=st.sampled_from(FUNCTIONS),
    dtype=st.sampled_from(DTYPES),
    threads=st.sampled_from(THREADS),
    n=st.integers(1, 200_000),
    start=st.integers(0, 999),
)
def test_an_element_has_the_same_bits_wherever_it_lies(
    function: Callable[..., torch.Tensor], dtype: torch.dtype, threads: int, n: int, start: int
) -> None:
    x = torch.randn(n + start, generator=torch.Generator().manual_seed(n)).to(dtype)
    torch.set_num_threads(1)
    expected = by_vectors(function, x)
    torch.set_num_threads(threads)
    assert torch.equal(by_vectors(function, x[start:]), expected[start:])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_arguments_are_kept(approximate: str) -> None:
    x = torch.linspace(-3, 3, 100)
    assert torch.allclose(by_vectors(F.gelu, x, approximate=approximate), F.gelu(x, approximate=approximate))
    assert torch.allclose(by_vectors(F.softplus, x, 2.0, threshold=3.0), F.softplus(x, 2.0, 3.0))


@pytest.mark.parametrize("threads", THREADS)
def test_a_layer_treats_a_row_alike_alone_and_in_company(threads: int) -> None:
    """As a gated layer computes it: a row of 1,344 numbers among 1 to 600, in float32, where torch alone
    would round it differently."""
    torch.set_num_threads(threads)
    x = torch.randn(1, 600, 2688, generator=torch.Generator().manual_seed(0))
    with ByRow(RowRule(2, 1)):
        whole = _gated(x)
        for n in (2, 3, 25, 64, 99, 301):
            assert torch.equal(_gated(x[:, :n]), whole[:, :n])


def test_a_recorded_function_takes_any_number_of_rows() -> None:
    torch.set_num_threads(5)
    x = torch.randn(1, 300, 2688)

    def run(rows: torch.Tensor) -> torch.Tensor:
        with ByRow(RowRule(2, 1)):
            return _gated(rows)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(run, (x[:, :3],), check_trace=False)  # type: ignore[no-untyped-call]
    for n in (1, 3, 77, 300):
        assert torch.equal(graph(x[:, :n]), run(x[:, :n]))


def test_square_roots_are_left_alone_where_they_are_exact() -> None:
    assert not is_rounded_by_place(torch.rsqrt, torch.float32)
    assert is_rounded_by_place(torch.rsqrt, torch.bfloat16)
    assert not is_rounded_by_place(torch.mul, torch.float32)


def _gated(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up * torch.sigmoid(x[..., :1])
