"""Every family, token for token: against transformers' own generate in float32, against itself alone in
bfloat16.

The mixed batches are hostile: random company, prompts in cells, KV dropped and replayed, blocks moved, all in
one arena that began as NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tokenmux.core.facts import KvShape
from tokenmux.core.sampling import Sampling
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.model_facts import kv_shape
from tokenmux.models.catalogue.probe import image_in_memory
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import Skeleton, state_names

GRID = 16
N_OUTPUT = 16
PROMPT_LENGTHS = (1, 16, 17, 40, 131)


@dataclass(frozen=True)
class Served:
    """One family in one dtype: transformers' model with random weights, and our runner on the same
    weights."""

    reference: PreTrainedModel
    runner: Runner
    shape: KvShape
    dtype: torch.dtype
    weights: torch.Tensor

    def bind(self, weights: torch.Tensor) -> None:
        """As a device does: a copy of the weights, rearranged for the processor."""
        copied = weights.clone()
        self.runner.pack(copied)
        self.runner.bind(copied)


@pytest.fixture(scope="module", params=sorted(tiny.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def serve(family: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], Served]:
    folder = tiny.create(family, tmp_path_factory.mktemp(family), dtype=torch.float32)

    def make(dtype: torch.dtype) -> Served:
        return load(folder, dtype)

    return make


def load(folder: Path, dtype: torch.dtype) -> Served:
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    weights, manifest = image_in_memory(state_names(reference), dtype)
    shape = kv_shape(reference.config, dtype, 8)
    runner = Runner(Skeleton(reference.config, manifest, packed=True), shape, prefill_chunk_tokens=GRID)
    served = Served(reference, runner, shape, dtype, weights)
    served.bind(weights)
    runner.record()
    return served


def generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """What transformers continues a prompt with: greedy, with its own cache, and no token that ends it."""
    config = GenerationConfig(do_sample=False, max_new_tokens=N_OUTPUT, eos_token_id=-1, pad_token_id=0)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output[0, len(prompt) :].tolist()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 250, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def test_equals_transformers_in_float32(serve, hostile_scheduler, job) -> None:
    served = serve(torch.float32)
    expected = [generate(served.reference, prompt) for prompt in prompts()]
    scheduler = hostile_scheduler(served.runner, served.shape, served.dtype, grid=GRID, n_blocks=300)
    got = scheduler.serve([job(p, N_OUTPUT) for p in prompts()], preempt=0.1, move=0.1)
    assert got == expected
    assert scheduler.n_preemptions > len(expected)
    assert scheduler.n_moves > 0
    assert scheduler.largest_batch > 3


def test_equals_itself_alone_in_bfloat16(serve, hostile_scheduler, job) -> None:
    served = serve(torch.bfloat16)
    samplings = [Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=3)]

    def jobs() -> list:
        return [job(p, N_OUTPUT, samplings[i % 2]) for i, p in enumerate(prompts())]

    alone = [
        hostile_scheduler(served.runner, served.shape, served.dtype, grid=GRID, n_blocks=40).serve([j])[0]
        for j in jobs()
    ]
    assert len({tuple(output) for output in alone}) == len(alone)
    for seed in range(2):
        scheduler = hostile_scheduler(
            served.runner, served.shape, served.dtype, grid=GRID, n_blocks=300, seed=seed
        )
        assert scheduler.serve(jobs(), preempt=0.1, move=0.1, repeat=1 + 2 * seed) == alone
        assert scheduler.n_preemptions > len(alone)


def test_steps_are_recorded_with_the_same_bits_for_other_weights_too(serve) -> None:
    """The graph holds no weights: bound to others, packed, it gives what the modules give with these as
    they come."""
    served = serve(torch.bfloat16)
    assert served.runner.recorded
    other = served.weights.view(torch.bfloat16).flip(0).contiguous().view(torch.uint8)
    s = served.shape
    kv = torch.randn(
        90, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim, generator=torch.Generator().manual_seed(1)
    ).bfloat16()
    segments = [Segment([9 + i], length, 0, list(range(i, 90, 2))) for i, length in enumerate((300, 20))]
    manifest = image_in_memory(state_names(served.reference), served.dtype)[1]
    modules = Runner(Skeleton(served.reference.config, manifest), s, prefill_chunk_tokens=GRID)
    served.bind(other)
    modules.bind(other)
    logits = [r.logits(r.prepare(segments, kv.clone())) for r in (served.runner, modules)]
    served.bind(served.weights)
    assert torch.equal(*logits)
    assert not modules.recorded
