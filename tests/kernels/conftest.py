"""What the kernel tests share: where kernels run, and caches full of poison.

Every check takes `run`, a function that carries out a launch function and gives back the arguments as it left
them. It runs in Triton's interpreter everywhere, and on a CUDA device as well where there is one.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tokenmux.kernels.interpreter import Interpreter
from tokenmux.kernels.layout import KVLayout
from tokenmux.kernels.tiles import DecodeTile, PrefillTile, SampleTile, decode_tile, prefill_tile

Run = Callable[..., dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where kernels run: how to run one, the dtypes that can be trusted there, and the tiles to use.

    The interpreter gets tiles so small that a few tokens are already several tiles and splits.
    """

    run: Run
    dtypes: tuple[torch.dtype, ...]
    decode_tile: Callable[[int], DecodeTile]
    prefill_tile: Callable[[int], PrefillTile]
    sample_tile: SampleTile


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    with Interpreter() as interpreter:
        yield interpreter


@pytest.fixture(
    scope="session",
    params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)],
)
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "interpreter":
        return Place(
            run=request.getfixturevalue("interpreter"),
            dtypes=(torch.float32, torch.float16),
            decode_tile=lambda _: DecodeTile(tokens=16, split=32, warps=4, stages=1),
            prefill_tile=lambda _: PrefillTile(queries=16, tokens=32, warps=4, stages=1),
            sample_tile=SampleTile(vocabulary=64, search=128),
        )
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    major, minor = torch.cuda.get_device_capability()
    return Place(
        run=run_on_cuda,
        dtypes=(torch.bfloat16, torch.float16),
        decode_tile=lambda head_dim: decode_tile(major * 10 + minor, head_dim),
        prefill_tile=lambda head_dim: prefill_tile(major * 10 + minor, head_dim),
        sample_tile=SampleTile(),
    )


def run_on_cuda(function: str, **arguments: Any) -> dict[str, Any]:
    module, name = function.split(":")
    moved = {key: to_device(value, "cuda") for key, value in arguments.items()}
    getattr(importlib.import_module(module), name)(**moved)
    return {key: to_device(value, "cpu") for key, value in moved.items()}


def to_device(value: Any, device: str) -> Any:
    """Copies tensors, also inside dataclasses, and keeps their strides."""
    if isinstance(value, torch.Tensor):
        flat = torch.empty(0, dtype=value.dtype, device=value.device).set_(value.untyped_storage())
        return flat.to(device).as_strided(value.shape, value.stride(), value.storage_offset())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value)(
            **{
                field.name: to_device(getattr(value, field.name), device)
                for field in dataclasses.fields(value)
            }
        )
    return value


@dataclasses.dataclass(frozen=True)
class Cache:
    """A KV cache whose every element that no kernel may use is NaN, and every such table entry out of
    bounds."""

    arena: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor


def make_cache(layout: KVLayout, lengths: list[int], dtype: torch.dtype, generator: torch.Generator) -> Cache:
    """Fills the first `lengths[row]` tokens of each row, in blocks strewn over the arena with gaps between
    them."""
    width = max(1, *(-(-length // layout.block_size) for length in lengths)) + 1
    table = torch.full((len(lengths), width), 2**62, dtype=torch.int64)
    used = [(row, j) for row, length in enumerate(lengths) for j in range(-(-length // layout.block_size))]
    pitch = layout.block_elements + 48
    arena = torch.full((pitch * (len(used) + 1),), float("nan"), dtype=dtype)
    for place, order in enumerate(torch.randperm(len(used), generator=generator).tolist()):
        table[used[order]] = place * pitch + 16
    for row, length in enumerate(lengths):
        for position in range(length):
            block = layout.block(arena, int(table[row, position // layout.block_size]))
            shape = (layout.layers, 2, layout.kv_heads, layout.head_dim)
            block[:, :, :, position % layout.block_size] = torch.randn(shape, generator=generator).to(dtype)
    return Cache(arena, table, torch.tensor(lengths, dtype=torch.int32))


@pytest.fixture(scope="session")
def cache_maker() -> Callable[..., Cache]:
    return make_cache


@pytest.fixture(scope="session")
def tolerance() -> dict[torch.dtype, dict[str, float]]:
    """By how much attention in a dtype may miss the reference in float32: a few of its roundings."""
    return {
        torch.float32: {"atol": 1e-5, "rtol": 1e-5},
        torch.float16: {"atol": 2e-3, "rtol": 2e-3},
        torch.bfloat16: {"atol": 1.6e-2, "rtol": 1.6e-2},
    }
