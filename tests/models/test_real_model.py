"""SmolLM2 itself, with all threads: the promise on real weights, real sizes and several key tiles. Needs a
download."""

import random
from pathlib import Path

import pytest
import torch

from tokenmux.core.errors import TokenmuxError
from tokenmux.core.sampling import Sampling
from tokenmux.demo.real_checkpoint import obtain_demo_checkpoint
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.network.runner import Runner
from tokenmux.models.weights.image import map_image

GRID = 64
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    try:
        folder = obtain_demo_checkpoint(Path.home() / ".cache" / "tokenmux")
    except TokenmuxError as error:
        pytest.skip(str(error))
    return Catalogue(tmp_path_factory.mktemp("root")).register_folder("smollm2", folder)


def bound_runner(entry: Entry) -> Runner:
    runner = Runner(entry.skeleton(packed=True), entry.facts.kv, prefill_chunk_tokens=GRID)
    image = map_image(entry.manifest).clone()
    runner.pack(image)
    runner.bind(image)
    return runner


def test_a_mixed_batch_yields_what_each_yields_alone(entry: Entry, hostile_scheduler, job) -> None:
    torch.set_num_threads(2)
    runner = bound_runner(entry)
    runner.record()

    def jobs() -> list:
        generator = random.Random(1)
        lengths = (1, 3, 17, 64, 65, 100, 130, 200, 300, 128)
        return [
            job(
                [generator.randrange(5, 40_000) for _ in range(n)],
                generator.choice([5, 20, 40]),
                Sampling(temperature=float(i % 3 == 0), top_p=0.9, seed=i),
            )
            for i, n in enumerate(lengths)
        ]

    def scheduler(n_blocks: int, seed: int = 0):
        return hostile_scheduler(
            runner, entry.facts.kv, torch.bfloat16, grid=GRID, n_blocks=n_blocks, seed=seed
        )

    alone = [scheduler(60).serve([j])[0] for j in jobs()]
    for seed in range(3):
        assert scheduler(400, seed).serve(jobs(), preempt=0.05, move=0.1, repeat=1 + seed) == alone


def test_it_answers_a_question(entry: Entry, hostile_scheduler, job) -> None:
    tokenizer = entry.tokenizer()
    runner = bound_runner(entry)
    prompt = entry.encoder().encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    scheduler = hostile_scheduler(runner, entry.facts.kv, torch.bfloat16, grid=GRID, n_blocks=20)
    (output,) = scheduler.serve([job(prompt, 12)])
    assert "Paris" in tokenizer.decode(output)
