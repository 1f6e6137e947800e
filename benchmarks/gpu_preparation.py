"""The section `prepare` of `benchmarks.gpu`: kernels are compiled, so that no later section waits for it."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from benchmarks.gpu_kernel_inputs import GEMMA_9B, LLAMA_8B, QWEN_7B, SMOLLM2, Heads
from benchmarks.gpu_place import Item, Place
from tokenmux.kernels import warm


def prepare(capability: int) -> str:
    """Compile the kernels of all sections into Triton's cache, on all cores. Needs no device; returns a
    report."""
    began = time.perf_counter()
    n = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")) as pool:
        compiled = sum(pool.map(partial(compile_part, capability, n), range(n)))
    return f"{compiled} kernels for sm_{capability} in {time.perf_counter() - began:.0f} s"


def compile_part(capability: int, n_parts: int, part: int) -> int:
    """Compile every `n_parts`-th form, from number `part` on. Returns their number."""
    shapes = [
        warm.ModelShape(dtype, heads.dim, 16, heads.query // heads.kv, vocabulary, dtype, *extra)
        for dtype in (torch.bfloat16, torch.float16)
        for heads in (SMOLLM2, LLAMA_8B, QWEN_7B, GEMMA_9B, Heads("llama-3.2-1b", 32, 8, 64))
        for vocabulary in (128_256, 49_152, 32_000)
        for extra in ((), (True, dtype))
    ]
    mine = warm.distinct(form for shape in shapes for form in warm.forms(capability, shape).values())[
        part::n_parts
    ]
    for form in mine:
        form.compile(capability)
    return len(mine)


def preparation(place: Place) -> list[Item]:
    """Compile what later sections launch, so that none of them waits for it."""
    if place.interpreted:
        return [Item("kernels", lambda: {"summary": "nothing is compiled in the interpreter"})]
    return [Item("kernels", lambda: {"summary": prepare(place.capability)})]
