"""What `test_kernel_step.py` runs in a child process, where Triton interprets instead of compiling.

Each function leaves what it found in `result`, which travels back.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.models.conftest import HostileScheduler, Job
from tokenmux.core.sampling import Sampling
from tokenmux.kernels.tiles import DecodeTile, PrefillTile, SampleTile, StepTiles
from tokenmux.models.catalogue.model_facts import kv_shape
from tokenmux.models.catalogue.probe import image_in_memory
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import Skeleton, state_names
from tokenmux.models.network.staging import HostCarrier, Staging
from tokenmux.models.sampling.draw import Draw
from tokenmux.models.transformers_log import quiet_transformers

GRID = 16
TILES = StepTiles(
    decode=DecodeTile(tokens=16, split=32, warps=4, stages=1),
    prefill=PrefillTile(queries=16, tokens=32, warps=4, stages=1),
    sample=SampleTile(vocabulary=512, search=512),
    rows=8,
)
"""So small that few tokens are several tiles, splits and passes."""


def make_runner(folder: str, tiles: StepTiles | None) -> Runner:
    torch.set_num_threads(1)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights, manifest = image_in_memory(state_names(model), torch.float32)
    shape = kv_shape(model.config, torch.float32, 8)
    runner = Runner(Skeleton(model.config, manifest), shape, prefill_chunk_tokens=GRID, tiles=tiles)
    runner.bind(weights)
    return runner


def make_jobs(lengths: list[int], n_output: int, sampled: bool) -> list[Job]:
    generator = torch.Generator().manual_seed(7)
    jobs = []
    for index, n in enumerate(lengths):
        prompt = torch.randint(0, 250, (n,), generator=generator).tolist()
        sampling = Sampling(temperature=1.0, top_p=0.9, top_k=40 * (index % 3), seed=index)
        jobs.append(Job(prompt, n_output, sampling if sampled and index % 2 == 0 else Sampling()))
    return jobs


def serve(
    folder: str,
    lengths: list[int],
    n_output: int,
    path: str,
    sampled: bool,
    seed: int,
    result: dict[str, Any],
) -> None:
    """Serve prompts of these lengths in hostile company: by `torch` or by `kernels`; or by the kernels,
    each `alone`."""
    runner = make_runner(folder, None if path == "torch" else TILES)
    jobs = make_jobs(lengths, n_output, sampled)

    def scheduler(n_blocks: int) -> HostileScheduler:
        return HostileScheduler(runner, runner._shape, torch.float32, grid=GRID, n_blocks=n_blocks, seed=seed)

    if path == "alone":
        result["tokens"] = [scheduler(40).serve([job])[0] for job in jobs]
        return
    company = scheduler(200)
    result["tokens"] = company.serve(jobs, preempt=0.1, move=0.1)
    result["n_preemptions"], result["n_moves"] = company.n_preemptions, company.n_moves
    result["largest_batch"] = company.largest_batch


def prompt_told(folder: str, lengths: list[int], path: str, result: dict[str, Any]) -> None:
    """What is told of prompts of these lengths, by `torch` or by `kernels` in hostile company, or by the
    kernels, each `alone`."""
    runner = make_runner(folder, None if path == "torch" else TILES)
    jobs = make_jobs(lengths, 2, False)
    for job in jobs[1:]:
        job.n_prompt_likeliest = 3

    def serve(some: list[Job]) -> None:
        HostileScheduler(runner, runner._shape, torch.float32, grid=GRID, n_blocks=200).serve(
            some, preempt=0.0 if path == "alone" else 0.2
        )

    for some in [[job] for job in jobs] if path == "alone" else [jobs]:
        serve(some)
    result["told"] = [job.prompt_told for job in jobs]
    result["tokens"] = [job.output for job in jobs]


def prompt_pooled(folder: str, lengths: list[int], path: str, result: dict[str, Any]) -> None:
    """Sums of hidden states of prompts of these lengths, among requests that generate, by `torch` or by
    `kernels`; or by the kernels, each `alone`."""
    runner = make_runner(folder, None if path == "torch" else TILES)
    pooled = [job for _ in ("mean", "last") for job in make_jobs(lengths, 0, False)]
    for place, job in enumerate(pooled):
        job.pooling = "mean" if place < len(lengths) else "last"
    others = make_jobs(lengths, 2, False)
    for some in [[job] for job in pooled] if path == "alone" else [[*pooled, *others]]:
        HostileScheduler(runner, runner._shape, torch.float32, grid=GRID, n_blocks=200).serve(
            some, preempt=0.0 if path == "alone" else 0.2
        )
    result["pooled"] = [[tuple(rows) for rows in job.pooled] for job in pooled]


def logits(folder: str, result: dict[str, Any]) -> None:
    """The largest difference of logits between both paths, in a step that has rows of every kind.

    A prompt in cells longer and shorter than a pass, a short prompt, a row of one tile, rows that are
    replayed over several splits. The kernels find NaN where nothing was written (the torch path zeroes a
    block before its first token).
    """
    runners = [make_runner(folder, tiles) for tiles in (None, TILES)]
    s = runners[0]._shape
    generator = torch.Generator().manual_seed(3)
    kv = torch.full((60, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim), torch.nan)
    order = torch.randperm(60, generator=generator).tolist()
    ids = torch.randint(0, 250, (100,), generator=generator).tolist()
    a, b, c, d = order[:6], order[6:8], order[8:9], order[9:20]
    for blocks, n_tokens in ((a, 16), (c, 5), (d, 70)):
        for position in range(n_tokens):
            cell = (s.n_layers, 2, s.n_kv_heads, s.head_dim)
            kv[blocks[position // s.block_size], :, :, :, position % s.block_size] = torch.randn(
                cell, generator=generator
            )
    segments = [
        Segment(ids[16:44], 16, 44, a),
        Segment(ids[:6], 0, 6, b),
        Segment(ids[5:6], 5, 3, c),
        Segment(ids[70:83], 70, 60, d),
    ]
    copies = [kv.nan_to_num(), kv.clone()]
    torch_logits, kernel_logits = (
        runner.logits(runner.prepare(segments, copy))[: len(segments)]
        for runner, copy in zip(runners, copies, strict=True)
    )
    result["difference"] = float((torch_logits - kernel_logits).abs().max() / torch_logits.abs().max())
    for blocks, n_tokens in ((a, 44), (b, 6), (c, 6), (d, 83)):
        for position in range(n_tokens):
            ours, theirs = (
                copy[blocks[position // s.block_size], :, :, :, position % s.block_size] for copy in copies
            )
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    result["untouched"] = bool(copies[1][order[20:]].isnan().all())
    result["pieces_differ"] = _differ_in_pieces(runners[1], segments, kv, kernel_logits)
    batch = runners[1].prepare(segments, copies[1])
    result["n_passes"] = batch.n_passes  # type: ignore[union-attr]


def _differ_in_pieces(
    runner: Runner, segments: list[Segment], kv: torch.Tensor, expected: torch.Tensor
) -> bool:
    """Whether logits come out otherwise when decode attention has room for one row at a time."""
    from tokenmux.models.network import kernel_step

    before = kernel_step.WORKSPACE_BYTES
    kernel_step.WORKSPACE_BYTES = 1
    try:
        got = runner.logits(runner.prepare(segments, kv.clone()))[: len(segments)]
    finally:
        kernel_step.WORKSPACE_BYTES = before
    return not torch.equal(got, expected)


def draws(logits: torch.Tensor, wanted: list[Draw], result: dict[str, Any]) -> None:
    """What the kernels draw from `logits`."""
    from tokenmux.models.network.kernel_draw import draw_rows_on_device

    carrier = Late()
    result["tokens"] = draw_rows_on_device(logits, wanted, TILES, Staging(carrier))
    result["n_waits"] = carrier.n_waits


def told(logits: torch.Tensor, wanted: list[Draw], result: dict[str, Any]) -> None:
    """What the kernels draw from `logits`, and the log-probabilities there."""
    from tokenmux.models.network.kernel_draw import draw_rows_on_device, log_probabilities_on_device

    staging = Staging(Late())
    tokens = draw_rows_on_device(logits, wanted, TILES, staging)
    result["tokens"] = tokens
    result["told"] = log_probabilities_on_device(logits, tokens, wanted, TILES, staging)


class Late(HostCarrier):
    """A stream whose copies back are done when somebody waits for it, and not before."""

    def __init__(self) -> None:
        self.n_waits = 0
        self.given: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.ours: list[torch.Tensor] = []

    def locked(self, n_bytes: int) -> torch.Tensor:
        self.ours.append(torch.full((n_bytes,), 0x77, dtype=torch.uint8))
        return self.ours[-1]

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if any(
            piece.untyped_storage().data_ptr() == target.untyped_storage().data_ptr() for piece in self.ours
        ):
            self.given.append((target, source))
        else:
            target.copy_(source)

    def settle(self) -> None:
        self.n_waits += 1
        for target, source in self.given:
            target.copy_(source)
        self.given.clear()
