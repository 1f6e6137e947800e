"""Decoding speed compared with transformers' own `generate`: the same weights, dtype and threads, in one
process.

SmolLM2-135M-Instruct in bfloat16 continues random prompts at batch 1, 8 and 32, all prompts of one length, so
that transformers needs no padding and decodes at its best. Rounds alternate between the two, and each ratio
is taken within a round: a busy machine slows both. For transformers, which hides its steps, a step's time is
the difference between a long and a short run over their difference in tokens; for us it is the median step.
The floor is the step's bare matrix products, each with its own weights, timed in the same round.

    python -m benchmarks.decode [--quick] [--cache FOLDER]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from benchmarks.report import Target, finish, spread, table
from tokenmux.core.facts import KvShape
from tokenmux.demo.real_checkpoint import obtain_demo_checkpoint
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.weights.image import map_image

BATCHES = (1, 8, 32)
N_PROMPT = 64
SOURCE = "the project's first milestone: 1.5 times transformers at batch 1, 8 and 32"
TARGETS = {f"batch{n}_over_transformers": Target(SOURCE, at_least=1.5) for n in BATCHES}


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds per decode step of one batch size, measured one after another."""

    transformers_s: float
    tokenmux_s: float
    products_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tokens")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "tokenmux",
        help="where the model is kept (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    n_rounds, n_steps = (3, 8) if options.quick else (9, 24)

    folder = obtain_demo_checkpoint(options.cache)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as root:
        entry = Catalogue(Path(root)).register_folder("model", folder)
        skeleton = entry.skeleton(packed=True)
        image = map_image(entry.manifest).clone()
        skeleton.pack(image)
        runner = Runner(skeleton, entry.facts.kv, prefill_chunk_tokens=512)
        runner.bind(image)
        runner.record()
        rounds = measure(reference, runner, entry.facts.kv, n_rounds, n_steps)
    report(rounds)


def measure(
    reference: PreTrainedModel, runner: Runner, shape: KvShape, n_rounds: int, n_steps: int
) -> dict[int, list[Round]]:
    """Alternate rounds of all batch sizes; the first round of each warms up and is dropped."""
    rounds: dict[int, list[Round]] = {n: [] for n in BATCHES}
    with Console(stderr=True).status("measuring") as status:
        for index in range(n_rounds + 1):
            for n in BATCHES:
                status.update(f"round {index} of {n_rounds}, batch {n}")
                ids = torch.randint(
                    100, 40_000, (n, N_PROMPT), generator=torch.Generator().manual_seed(index)
                )
                taken = Round(
                    transformers_step_s(reference, ids, n_steps),
                    tokenmux_step_s(runner, shape, ids, n_steps),
                    products_s(reference, max(2, n)),
                )
                if index:
                    rounds[n].append(taken)
    return rounds


def transformers_step_s(model: PreTrainedModel, ids: torch.Tensor, n_steps: int) -> float:
    def run(n_tokens: int) -> float:
        config = GenerationConfig(
            do_sample=False, max_new_tokens=n_tokens, min_new_tokens=n_tokens, eos_token_id=2, pad_token_id=2
        )
        began = time.perf_counter()
        model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), generation_config=config
        )
        return time.perf_counter() - began

    short = run(1)
    return (run(1 + n_steps) - short) / n_steps


def tokenmux_step_s(runner: Runner, shape: KvShape, ids: torch.Tensor, n_steps: int) -> float:
    n_blocks = shape.blocks_for(N_PROMPT + n_steps + 1)
    arena = torch.zeros(len(ids) * n_blocks * shape.block_bytes, dtype=torch.uint8)
    kv = arena.view(torch.bfloat16).view(
        -1, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim
    )
    # Interleaved, as after some time of serving: no sequence has adjacent blocks.
    tables = [list(range(row, len(kv), len(ids))) for row in range(len(ids))]
    prompts = [Segment(row, 0, N_PROMPT, blocks) for row, blocks in zip(ids.tolist(), tables, strict=True)]
    drawn = runner.step(runner.prepare(prompts, kv))
    tokens = [token for token in drawn if token is not None]
    batch = runner.prepare(
        [Segment([t], N_PROMPT, N_PROMPT, blocks) for t, blocks in zip(tokens, tables, strict=True)], kv
    )
    steps = []
    for _ in range(n_steps):
        began = time.perf_counter()
        drawn = runner.step(batch)
        batch.advance([token for token in drawn if token is not None])
        steps.append(time.perf_counter() - began)
    return statistics.median(steps)


@torch.inference_mode()
def products_s(model: PreTrainedModel, n_rows: int) -> float:
    """Seconds for the matrix products of one step alone, each linear layer with its own weights."""
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(n_rows, w.shape[1]).to(w.dtype) for w in weights}
    times = []
    for _ in range(5):
        began = time.perf_counter()
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def report(rounds: dict[int, list[Round]]) -> None:
    metrics: dict[str, float] = {}
    rows: list[list[object]] = []
    for n, taken in rounds.items():
        ratio = spread(f"batch{n}_over_transformers", [r.transformers_s / r.tokenmux_s for r in taken])
        share = spread(f"batch{n}_share_of_products", [r.products_s / r.tokenmux_s for r in taken])
        theirs = statistics.median(n / r.transformers_s for r in taken)
        ours = statistics.median(n / r.tokenmux_s for r in taken)
        metrics |= ratio | share
        metrics |= {f"batch{n}_tokens_per_s": ours, f"batch{n}_transformers_tokens_per_s": theirs}
        low, middle, high = (
            f"{ratio[f'batch{n}_over_transformers{end}']:.2f}" for end in ("_p20", "", "_p80")
        )
        floor = statistics.median(n / r.products_s for r in taken)
        rows.append(
            [n, theirs, ours, f"{middle} ({low} to {high})", floor, share[f"batch{n}_share_of_products"]]
        )
    table(
        "decoding SmolLM2-135M in bfloat16",
        [
            "batch",
            "transformers tok/s",
            "tokenmux tok/s",
            "ratio (p20 to p80)",
            "bare products tok/s",
            "share of them",
        ],
        rows,
    )
    finish("decode", metrics, TARGETS, {"torch": torch.__version__, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
