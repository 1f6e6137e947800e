"""Experts by row: the values of transformers' own loop, the bits of a row alone, and memory that does not
grow with the rows."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmux.models.catalogue.tiny import FAMILIES
from tokenmux.models.network.experts import expert_products, products_by_rule
from tokenmux.models.network.rows import Product, RowRule, products_of, row_rule
from tokenmux.models.network.skeleton import empty_model


@settings(max_examples=30)
@given(
    chosen=st.lists(st.integers(0, 5), min_size=1, max_size=90),
    transposed=st.booleans(),
    rule=st.sampled_from([RowRule(1, 1), RowRule(2, 1, 16), RowRule(4, 4), RowRule(16, 16, 32)]),
)
def test_each_row_is_multiplied_with_the_weight_it_chose(
    chosen: list[int], transposed: bool, rule: RowRule
) -> None:
    generator = torch.Generator().manual_seed(len(chosen))
    weights = torch.randn(6, 24, 16, generator=generator)
    x = torch.randn(len(chosen), 24 if transposed else 16, generator=generator)
    ids = torch.tensor(sorted(chosen))
    expected = torch.stack(
        [row @ (weights[i] if transposed else weights[i].T) for row, i in zip(x, ids, strict=True)]
    )
    got = products_by_rule(x, weights, ids, transposed, rule)
    assert torch.allclose(got, expected, atol=1e-4)
    assert torch.equal(
        expert_products(x, weights, ids, transposed),
        products_by_rule(x, weights, ids, transposed, RowRule(1, 1)),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_has_the_same_bits_whoever_chose_its_expert(dtype: torch.dtype, transposed: bool) -> None:
    n, k = 176, 256
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn((4, k, n) if transposed else (4, n, k), generator=generator).to(dtype)
    rule = row_rule(dtype, frozenset({Product(n, k, transposed=transposed)}))
    x = torch.randn(300, k, generator=generator).to(dtype)
    chosen = torch.randint(0, 4, (300,), generator=generator).sort().values
    together = products_by_rule(x, weights, chosen, transposed, rule)
    for rows in (slice(0, 1), slice(7, 9), slice(40, 111), slice(299, 300)):
        alone = products_by_rule(x[rows].clone(), weights, chosen[rows], transposed, rule)
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("family", ["qwen2_moe", "mixtral", "gpt_oss"])
def test_the_products_of_experts_are_known(family: str) -> None:
    config = FAMILIES[family]()
    found = products_of(empty_model(config, torch.float32))
    size = getattr(config, "moe_intermediate_size", config.intermediate_size)
    transposed = family == "gpt_oss"
    assert Product(2 * size, config.hidden_size, transposed=transposed) in found
    assert Product(config.hidden_size, size, transposed=transposed) in found


_LAYER = """
import re, torch
from pathlib import Path
from transformers import AutoConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts
from tokenmux.models.network.experts import experts_by_row
torch.set_num_threads(1)

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

config = AutoConfig.for_model(
    "qwen2_moe", hidden_size=2048, moe_intermediate_size=1408, num_experts=60, num_experts_per_tok=4
)
with torch.inference_mode():
    torch.set_default_dtype(torch.bfloat16)
    layer = Qwen2MoeExperts(config)
    for parameter in layer.parameters():
        parameter.fill_(0.01)
    size = sum(p.nbytes for p in layer.parameters())
    before = peak()
    for n in (64, 512):
        x = torch.ones(n, 2048, dtype=torch.bfloat16)
        ids = torch.arange(4 * n).remainder(60).view(n, 4)
        experts_by_row(layer, x, ids, torch.full((n, 4), 0.25, dtype=torch.bfloat16))
        if peak() - before > size / 4:
            break  # the longer prompt would take all memory, and say no more
print(n, peak() - before, size)
"""


def test_a_prompt_through_a_layer_of_real_size_takes_no_copies_of_its_weights() -> None:
    """Qwen1.5-MoE-A2.7B's layer, 1 GB: with a copy for each row and expert, 512 tokens took 23 GB more."""
    done = subprocess.run([sys.executable, "-c", _LAYER], capture_output=True, text=True, check=True)
    n_tokens, grown, layer = map(int, done.stdout.split())
    assert layer > 900 << 20
    assert grown < layer / 4
    assert n_tokens == 512
