"""Compiles everything that a model needs, ahead of time and without a device.

A form that is missing from Triton's cache is compiled at its first launch, which takes about a second in the
middle of a request. `compile_for` fills the cache with exactly the forms that the launch functions look up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton

from tokenmux.kernels.kv_append import launch as kv_append
from tokenmux.kernels.kv_page import launch as kv_page
from tokenmux.kernels.paged_decode import launch as paged_decode
from tokenmux.kernels.paged_prefill import launch as paged_prefill
from tokenmux.kernels.sample import launch as sample
from tokenmux.kernels.tiles import SampleTile, decode_tile, prefill_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenmux.kernels.variant import Variant


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the compiler has to know of a model. Layers, KV heads, windows and batches do not matter to it.

    `group` is the number of query heads per KV head. `sinks` is the dtype of attention sinks, None for a
    model without. `vocabulary` and `logits` say what the sampler reads; a row of logits is assumed to be
    contiguous.
    """

    dtype: torch.dtype
    head_dim: int
    block_size: int
    group: int
    vocabulary: int
    logits: torch.dtype
    softcap: bool = False
    sinks: torch.dtype | None = None


def forms(capability: int, shape: ModelShape) -> dict[str, Variant]:
    """The compiled forms that `shape` needs on a device of `capability` (major * 10 + minor), by name."""
    decode = decode_tile(capability, shape.head_dim)
    prefill = prefill_tile(capability, shape.head_dim)
    sampler = sample.variants(shape.logits, shape.vocabulary, shape.vocabulary, SampleTile())
    of_rules = sample.variants(torch.float32, shape.vocabulary, shape.vocabulary, SampleTile())
    return {
        "kv_append": kv_append.variant(shape.dtype, shape.head_dim, shape.block_size),
        "paged_decode.attend": paged_decode.split_variant(
            shape.dtype, shape.head_dim, shape.block_size, shape.group, decode, shape.softcap
        ),
        "paged_decode.merge": paged_decode.merge_variant(shape.dtype, shape.head_dim, decode, shape.sinks),
        "paged_prefill": paged_prefill.variant(
            shape.dtype, shape.head_dim, shape.block_size, prefill, softcap=shape.softcap, sinks=shape.sinks
        ),
        "kv_page": kv_page.copy_variant(),
        "kv_page_out_int8": kv_page.quantise_variant(shape.dtype, shape.head_dim),
        "kv_page_in_int8": kv_page.dequantise_variant(shape.dtype, shape.head_dim),
        **{f"sample.{name}": variant for name, variant in sampler.items()},
        # Rows whose logits a request's rules change are float32, whatever the model's are.
        **{f"sample_with_rules.{name}": variant for name, variant in of_rules.items()},
    }


def compile_for(capability: int, shape: ModelShape) -> dict[str, Any]:
    """Compile all `forms` into Triton's cache (those that are there are only looked up) and return them by
    name."""
    return {name: variant.compile(capability) for name, variant in forms(capability, shape).items()}


PAGING_IN_INT8 = frozenset({"kv_page_out_int8", "kv_page_in_int8"})
"""Forms that a server launches only if it is configured to page in int8."""


def distinct(variants: Iterable[Variant]) -> list[Variant]:
    """Each compiled form once."""
    return list({variant.identity: variant for variant in variants}.values())


@dataclass(frozen=True, slots=True)
class Warmed:
    """The result of filling the cache. `compiled` of `forms` were missing; sizes are in bytes."""

    forms: int
    compiled: int
    seconds: float
    cache: Path
    cache_bytes: int


def warm(
    capability: int,
    shapes: Iterable[ModelShape],
    progress: Callable[[int, int], None],
    *,
    paged_int8: bool = False,
    cache: Path | None = None,
) -> Warmed:
    """Compile all forms that a server of `shapes` launches, each once, into the folder `cache` or Triton's
    own.

    `progress` is called with the number of finished forms and the total.
    """
    wanted = distinct(
        variant
        for shape in shapes
        for name, variant in forms(capability, shape).items()
        if paged_int8 or name not in PAGING_IN_INT8
    )
    compiled = 0

    def listen(*, cache_hit: bool, **_: Any) -> None:
        nonlocal compiled
        compiled += not cache_hit

    began = time.perf_counter()
    with triton.knobs.compilation.scope(), triton.knobs.cache.scope():
        triton.knobs.compilation.listener = listen
        if cache is not None:
            triton.knobs.cache.dir = str(cache.absolute())
        for done, variant in enumerate(wanted):
            progress(done, len(wanted))
            variant.compile(capability)
        folder = Path(triton.knobs.cache.dir)
    progress(len(wanted), len(wanted))
    return Warmed(
        forms=len(wanted),
        compiled=compiled,
        seconds=time.perf_counter() - began,
        cache=folder,
        cache_bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    )
