"""Steps by several threads: a prompt's logits and KV have the same bits alone and in company, whatever the
number of threads.

torch divides products and element-wise functions among threads at places that depend on the number of rows;
the node takes one thread less than the machine has cores.
"""

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tokenmux.models.catalogue.model_facts import kv_shape
from tokenmux.models.catalogue.probe import image_in_memory
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import Skeleton, state_names

BLOCK = 16
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 1344,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
KINDS = {"silu": ("llama", {}), "gelu_tanh": ("gemma2", {"query_pre_attn_scalar": 64})}
THREADS = (5, 7, 11)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_has_the_same_bits_alone_and_in_company(kind: str, dtype: torch.dtype) -> None:
    model_type, more = KINDS[kind]
    config = AutoConfig.for_model(model_type, **SHAPE, **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights, manifest = image_in_memory(state_names(model), dtype)
    shape = kv_shape(config, dtype, BLOCK)
    generator = torch.Generator().manual_seed(1)
    mine, others = (torch.randint(0, 512, (n,), generator=generator).tolist() for n in (300, 211))
    segment = Segment(mine, 0, 300, list(range(20)))
    company = Segment(others, 0, 211, list(range(20, 40)))

    def run(runner: Runner, *segments: Segment) -> tuple[torch.Tensor, torch.Tensor]:
        kv = torch.zeros(40, shape.n_layers, 2, shape.n_kv_heads, BLOCK, shape.head_dim, dtype=dtype)
        return runner.logits(runner.prepare(list(segments), kv))[0].clone(), kv[:20]

    for threads in THREADS:
        torch.set_num_threads(threads)
        runner = Runner(Skeleton(config, manifest), shape, prefill_chunk_tokens=512)
        runner.bind(weights)
        alone, together = run(runner, segment), run(runner, segment, company)
        assert torch.equal(alone[0], together[0]), f"logits, {threads} threads"
        assert torch.equal(alone[1], together[1]), f"KV, {threads} threads"
