"""Every kernel compiles for every architecture, without spills, within its budget, with 16-byte loads.

The default run takes a part of the matrix that touches each kernel, architecture, dtype, head size and
variant; `-m nightly` takes all of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from tokenmux import kernels
from tokenmux.kernels.budgets import BUDGETS, budget_of, wide_loads
from tokenmux.kernels.resources import resources
from tokenmux.kernels.tiles import GpuArchitecture
from tokenmux.kernels.warm import PAGING_IN_INT8, ModelShape, forms

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ALL_OF_IT = ("kv_", "paged_", "sample.")
"""All but what draws rows with rules: the sampler again, on float32."""
IN_INT8 = tuple(sorted(PAGING_IN_INT8))


def shape(dtype, head_dim, block_size=16, group=4, vocabulary=151_936, logits=None, **variant):
    return ModelShape(dtype, head_dim, block_size, group, vocabulary, logits or dtype, **variant)


SINKS = {"softcap": True, "sinks": BF16}

REPRESENTATIVE = [
    (80, shape(FP16, 64), ALL_OF_IT),
    (90, shape(BF16, 128), ALL_OF_IT),
    (100, shape(BF16, 64, group=1), ALL_OF_IT),
    (80, shape(BF16, 128, block_size=32, group=40, **SINKS), ("kv_append", "paged")),
    (100, shape(FP16, 256, group=40, softcap=True), ("kv_append", "paged")),
    (90, shape(FP16, 80, block_size=32), ("kv_append", "paged", *IN_INT8)),
    (90, shape(BF16, 64, group=64, **SINKS), ("kv_append", "paged")),
    (80, shape(BF16, 256), ("kv_append", "paged", *IN_INT8)),
    (100, shape(BF16, 128, group=40), ("paged",)),
    (100, shape(BF16, 96, group=8), ("kv_append", "paged")),
    (90, shape(FP16, 256, group=16, softcap=True), ("paged",)),
    (90, shape(FP16, 64, logits=FP32), ("sample.",)),
    (80, shape(BF16, 64), ("sample_with_rules.",)),
    (100, shape(FP16, 64, vocabulary=50_257, logits=FP16), ("sample.",)),
]


def cases(selection):
    for capability, model, prefixes in selection:
        for name in forms(capability, model):
            if name.startswith(prefixes):
                shape = f"{model.head_dim}-{model.block_size}-{model.group}"
                label = f"sm_{capability}-{name}-{str(model.dtype)[6:]}-{shape}"
                yield pytest.param(capability, model, name, id=label)


def everything(capability, dtype, head_dim):
    """All forms for one head size: block sizes, groups, variants, and (once) vocabularies and dtypes of
    logits."""
    seen = set()
    wanted = ALL_OF_IT if head_dim == 64 else ("kv_append", "paged", *IN_INT8)
    for block_size, group, variant, (vocabulary, logits) in itertools.product(
        (16, 32, 64), (1, 32, 64), ({}, SINKS), ((151_936, dtype), (50_257, dtype), (151_936, FP32))
    ):
        model = shape(dtype, head_dim, block_size, group, vocabulary, logits, **variant)
        for name, form in forms(capability, model).items():
            if name.startswith(wanted) and (name, form.identity) not in seen:
                seen.add((name, form.identity))
                yield model, name


def dtype_read_by(name: str, model: ModelShape) -> torch.dtype:
    """The dtype of what a kernel reads most of."""
    if name.startswith("sample_with_rules."):
        return FP32
    return model.logits if name.startswith("sample.") else model.dtype


def check(capability: int, model: ModelShape, name: str) -> None:
    form = forms(capability, model)[name]
    used, budget = resources(form.compile(capability)), budget_of(name, model, capability)
    itemsize = dtype_read_by(name, model).itemsize
    assert used.spilled == 0, (name, model)
    assert used.registers <= budget.registers, (name, model)
    assert used.shared_bytes <= budget.shared_kib * 1024, (name, model)
    assert used.wide_loads >= wide_loads(name, form, itemsize), (name, model, dict(used.loads))


REPRESENTATIVE_CASES = list(cases(REPRESENTATIVE))


@pytest.mark.parametrize(("capability", "model", "name"), REPRESENTATIVE_CASES)
def test_keeps_to_its_budget(capability, model, name):
    check(capability, model, name)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("dtype", [FP16, BF16])
@pytest.mark.parametrize("capability", GpuArchitecture)
def test_every_form_keeps_to_its_budget(capability, dtype, head_dim):
    for model, name in everything(capability, dtype, head_dim):
        check(capability, model, name)


def test_the_default_run_is_short_and_touches_everything():
    assert len(REPRESENTATIVE_CASES) <= 150
    named = {case.values[2] for case in REPRESENTATIVE_CASES}
    assert named == set(forms(90, shape(BF16, 64)))
    assert {case.values[0] for case in REPRESENTATIVE_CASES} == set(GpuArchitecture)
    assert {
        budget_of(name, model, capability)
        for capability, model, name in (case.values for case in REPRESENTATIVE_CASES)
    } == set(BUDGETS.values())


def test_a_narrow_load_is_noticed():
    """Heads of 68 numbers put every other token off the 16-byte grid; so does a vocabulary of 50,257."""
    attend = forms(90, shape(BF16, 128))["paged_decode.attend"]
    odd = dataclasses.replace(attend, constants={**attend.constants, "HEAD_DIM": 68})
    assert resources(odd.compile(90)).wide_loads < wide_loads("paged_decode.attend", attend, 2)
    aligned, ragged = (
        forms(90, shape(BF16, 64, vocabulary=size))["sample.draw"] for size in (151_936, 50_257)
    )
    assert resources(ragged.compile(90)).wide_loads < wide_loads("sample.draw", aligned, 2)


def test_a_spill_is_noticed():
    form = dataclasses.replace(forms(80, shape(BF16, 256))["paged_prefill"], warps=2)
    assert resources(form.compile(80)).spilled > 0


def test_the_readme_states_the_budgets():
    readme = (Path(kernels.__path__[0]) / "README.md").read_text()
    rows = [f"| {name} | {budget.registers} | {budget.shared_kib} |" for name, budget in BUDGETS.items()]
    assert "\n".join(rows) in readme
