"""The sections of `benchmarks.gpu` that look at whole models: the tests marked `gpu`, exactness, swapping,
decoding."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedConfig

from benchmarks import swap as swapping
from benchmarks.gpu_copies import copy_rate
from benchmarks.gpu_kernel_inputs import random
from benchmarks.gpu_place import Item, Place
from benchmarks.report import ROOT
from tokenmux.core.errors import UnsupportedModel
from tokenmux.core.facts import KvShape
from tokenmux.core.sampling import Sampling
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.model_facts import kv_shape
from tokenmux.models.catalogue.probe import manifest_in_memory
from tokenmux.models.network import rows
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import Skeleton, empty_model, state_names
from tokenmux.models.transformers_log import quiet_transformers

SHAPES: Mapping[str, LlamaConfig] = {
    "smollm2-135m": swapping.SHAPES[swapping.SMOLLM2_135M],
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}
"""Published shapes with random weights: speed does not depend on the values of weights."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with random weights on a device, ready for steps."""

    runner: Runner
    shape: KvShape
    config: PreTrainedConfig
    dtype: torch.dtype
    skeleton: Skeleton

    def kv(self, n_blocks: int, device: str) -> torch.Tensor:
        s = self.shape
        return torch.full(
            (n_blocks, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim),
            torch.nan,
            dtype=self.dtype,
            device=device,
        )


@torch.inference_mode()
def load(place: Place, config: PreTrainedConfig, dtype: torch.dtype, grid: int) -> Loaded:
    """Draw weights in place: matrices of a scale that keeps activations at theirs, vectors of ones."""
    with quiet_transformers():
        manifest = manifest_in_memory(state_names(empty_model(config, dtype)), dtype)
        skeleton = Skeleton(config, manifest)
    image = torch.zeros(manifest.n_bytes, dtype=torch.uint8, device=place.device)
    torch.manual_seed(0)
    for entry in manifest.tensors.values():
        tensor = image[entry.offset : entry.offset + entry.n_bytes].view(dtype).view(entry.shape)
        if len(entry.shape) > 1:
            tensor.normal_(0.0, entry.shape[-1] ** -0.5)
        else:
            tensor.fill_(1.0)
    shape = kv_shape(config, dtype)
    runner = Runner(skeleton, shape, prefill_chunk_tokens=grid, tiles=place.step_tiles(shape.head_dim))
    runner.bind(image)
    return Loaded(runner, shape, config, dtype, skeleton)


# ── tests ───────────────────────────────────────────────────────────────────────────────────────────────────


def tests(place: Place) -> list[Item]:
    if place.interpreted:
        return [Item("stand_in", partial(run_pytest, "tests/kernels/test_floors.py", "not gpu"))]
    return [
        Item(folder.replace("/", "."), partial(run_pytest, folder, "gpu"))
        for folder in ("tests/device", "tests/executor/test_node.py", "tests/kernels")
    ]


NO_TEST = 5
"""pytest's exit status when nothing was selected."""


def run_pytest(path: str, marked: str) -> Mapping[str, Any]:
    """Run tests without the project's own settings, which name plug-ins that may not be there."""
    command = [
        sys.executable, "-m", "pytest", path, "-q", "-m", marked, "-c", "/dev/null", f"--rootdir={ROOT}",
        "-p", "no:cacheprovider", "--import-mode=importlib", "-o", "pythonpath=.",
        "-o", "markers=gpu\nnightly\ntimeout\nasyncio", "--tb=line",
    ]  # fmt: skip
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode == NO_TEST:
        return {"summary": "no test is marked so"}
    if done.returncode:
        raise AssertionError(" | ".join(lines[-8:])[-500:])
    return {"summary": lines[-1]}


# ── whole models ────────────────────────────────────────────────────────────────────────────────────────────


def models(place: Place) -> list[Item]:
    dtype = place.dtypes[0]
    items = [
        Item(f"products.{str(d).removeprefix('torch.')}", partial(check_products, place, d))
        for d in place.dtypes
    ]
    families = (
        ("llama", "gemma2")
        if place.interpreted
        else ("llama", "gemma2", "gpt2", "qwen3", "gpt_oss", "mixtral")
    )
    for check, name, tried in ((check_company, "company", families), (check_eager, "eager", families[:4])):
        items += [
            Item(f"{name}.{family}", partial(check, place, tiny.FAMILIES[family](), dtype))
            for family in tried
        ]
    if not place.interpreted:
        wide = LlamaConfig(
            **{**SHAPES["llama-3.1-8b"].to_dict(), "num_hidden_layers": 2, "vocab_size": 32_000}
        )
        items.append(Item("company.llama-3.1-8b-2-layers", partial(check_company, place, wide, dtype)))
    return items


def check_products(place: Place, dtype: torch.dtype) -> Mapping[str, Any]:
    """Whether a row's place in a pass changes its bits; and, for information, which padding to a multiple
    would have been exact."""
    rows.check_rows_of(place.step_tiles(64).rows, dtype, place.device)
    try:
        rule = rows.row_rule(dtype)
        padding = f"at least {rule.minimum}, multiple of {rule.multiple}"
    except UnsupportedModel:
        padding = "none is exact"
    return {
        "padding_to_a_multiple": padding,
        "grouped_experts_exact": rows.grouped_experts_are_exact(dtype, place.device),
    }


@dataclass(slots=True)
class Job:
    """A request: its tokens so far, where its blocks are, and how it draws."""

    tokens: list[int]
    n_prompt: int
    blocks: list[int]
    sampling: Sampling
    n_cached: int = 0

    def segment(self, end: int) -> Segment:
        return Segment(
            self.tokens[self.n_cached : end],
            self.n_cached,
            self.n_prompt,
            self.blocks,
            draw=end == len(self.tokens),
            sampling=self.sampling,
        )


def make_jobs(lengths: Sequence[int], n_output: int, shape: KvShape, vocabulary: int) -> list[Job]:
    generator = torch.Generator().manual_seed(5)
    n_blocks = shape.blocks_for(max(lengths) + n_output + 1)
    order = torch.randperm(n_blocks * len(lengths), generator=generator).tolist()
    return [
        Job(
            torch.randint(0, vocabulary, (n,), generator=generator).tolist(),
            n,
            order[n_blocks * index : n_blocks * (index + 1)],
            Sampling(temperature=float(index % 2), top_p=0.9, seed=index),
        )
        for index, n in enumerate(lengths)
    ]


def serve(
    loaded: Loaded, jobs: Sequence[Job], kv: torch.Tensor, n_output: int, replay_after: int = 0
) -> list[list[int]]:
    """Serve jobs together: all prompts in one step, then decoding. After `replay_after` tokens all KV is
    lost and replayed."""
    runner = loaded.runner
    for done in range(n_output):
        if replay_after and done == replay_after:
            kv.fill_(torch.nan)
            for job in jobs:
                job.n_cached = 0
        drawn = runner.step(runner.prepare([job.segment(len(job.tokens)) for job in jobs], kv))
        for job, token in zip(jobs, drawn, strict=True):
            assert token is not None
            job.n_cached = len(job.tokens)
            job.tokens.append(token)
    return [job.tokens[job.n_prompt :] for job in jobs]


def check_company(place: Place, config: PreTrainedConfig, dtype: torch.dtype) -> Mapping[str, Any]:
    """Tokens alone, in company, and after a replay in company are the same."""
    loaded = load(place, config, dtype, 16 if place.interpreted else 256)
    lengths, n_output = ((1, 9, 20), 3) if place.interpreted else ((1, 17, 64, 65, 130, 256, 300, 700), 24)
    longest = config.max_position_embeddings - n_output
    lengths = tuple(min(length, longest) for length in lengths)

    def run(together: bool, replay_after: int = 0) -> list[list[int]]:
        jobs = make_jobs(lengths, n_output, loaded.shape, config.vocab_size)
        kv = loaded.kv(sum(len(job.blocks) for job in jobs), place.device)
        if together:
            return serve(loaded, jobs, kv, n_output, replay_after)
        return [serve(loaded, [job], kv, n_output)[0] for job in jobs]

    alone = run(together=False)
    for replay_after in (0, n_output // 2):
        company = run(together=True, replay_after=replay_after)
        wrong = [n for n, a, b in zip(lengths, alone, company, strict=True) if a != b]
        if wrong:
            raise AssertionError(
                f"prompts of {wrong} tokens yield other tokens in company "
                f"({'with' if replay_after else 'without'} replay)"
            )
    return {"requests": len(lengths), "tokens_each": n_output, "distinct": len({tuple(t) for t in alone})}


@torch.inference_mode()
def check_eager(place: Place, config: PreTrainedConfig, dtype: torch.dtype) -> Mapping[str, Any]:
    """Compare the logits of a prompt and of rows decoded after it with transformers' own attention and the
    same weights."""
    loaded = load(place, config, dtype, 16 if place.interpreted else 256)
    with quiet_transformers():
        eager = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    eager = eager.to(place.device).eval()
    eager.load_state_dict(state_names(loaded.skeleton.model), strict=False)
    eager.tie_weights()
    n, n_rows = (30, 4) if place.interpreted else (200, 8)
    ids = torch.randint(
        0, config.vocab_size, (n + n_rows,), generator=torch.Generator().manual_seed(2)
    ).tolist()
    kv = loaded.kv(40, place.device)
    blocks = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    runner = loaded.runner
    got = [runner.logits(runner.prepare([Segment(ids[:n], 0, n, blocks)], kv))[0]]
    got += [
        runner.logits(runner.prepare([Segment([ids[i]], i, n, blocks)], kv))[0] for i in range(n, n + n_rows)
    ]
    expected = eager(input_ids=torch.tensor([ids], device=place.device), use_cache=False).logits[0, n - 1 :]
    scale = float(expected.float().abs().max())
    error = float((torch.stack(got).float() - expected.float()).abs().max()) / scale
    bound = 1e-4 if dtype is torch.float32 else 5e-2
    if not error < bound:
        raise AssertionError(f"relative error {error:.3g}, allowed {bound}")
    return {"relative_error": error}


# ── swapping ────────────────────────────────────────────────────────────────────────────────────────────────


def pinned_copy(n_bytes: int) -> float:
    """Seconds of one copy from pinned memory to the device, in one piece."""
    source = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device="cuda")
    torch.cuda.synchronize()
    began = time.perf_counter()
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def swap(place: Place) -> list[Item]:
    if place.interpreted:
        return [
            Item("tiny", partial(time_swaps, place, LlamaConfig(**tiny.FAMILIES["llama"]().to_dict()), 2))
        ]
    names = ("smollm2-135m", "llama-3.2-1b")
    return [Item(name, partial(time_swaps, place, SHAPES[name], 10)) for name in names]


def time_swaps(place: Place, config: LlamaConfig, repetitions: int) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tokenmux-gpu-swap-") as folder:
        entry = swapping.make_entry("model", config, Path(folder))
        if place.interpreted:
            with closing(swapping.Bench(entry)) as bench, bench.plain_copy() as copy:
                pairs = swapping.pairs_of(bench.swap, copy, repetitions)
        else:
            with closing(swapping.Bench(entry, "cuda")) as bench:
                pairs = swapping.pairs_of(bench.swap, partial(pinned_copy, entry.facts.n_bytes), repetitions)
    ratios = sorted(swapped / copied for swapped, copied in pairs)
    return {
        "bytes": entry.facts.n_bytes,
        "activation_s": median(swapped for swapped, _ in pairs),
        "copy_s": median(copied for _, copied in pairs),
        "activation_over_copy": median(ratios),
        "activation_over_copy_p20": ratios[len(ratios) // 5],
        "activation_over_copy_p80": ratios[len(ratios) * 4 // 5],
    }


# ── decoding ────────────────────────────────────────────────────────────────────────────────────────────────


def decode(place: Place) -> list[Item]:
    shapes = {"tiny": tiny.FAMILIES["llama"]()} if place.interpreted else SHAPES
    batches, context, n_steps = ((1, 2), 20, 2) if place.interpreted else ((1, 8, 32, 64), 1024, 24)
    kept: dict[str, Loaded] = {}

    def loaded(name: str) -> Loaded:
        if name not in kept:
            kept.clear()
            kept[name] = load(place, shapes[name], place.dtypes[0], 16 if place.interpreted else 512)
        return kept[name]

    items = []
    for name in shapes:
        for batch in batches:
            run = partial(time_decode, place, partial(loaded, name), batch, context, n_steps)
            items.append(Item(f"{name}.{batch}x{context}", run))
        items.append(Item(f"{name}.prefill", partial(time_prefill, place, partial(loaded, name))))
    for name in shapes:
        for batch in (batches[0], batches[-2]):
            run = partial(time_transformers, place, kept, shapes[name], batch, context, n_steps)
            items.append(Item(f"{name}.{batch}x{context}.transformers", run))
    return items


@torch.inference_mode()
def time_decode(
    place: Place, get: "partial[Loaded]", batch: int, context: int, n_steps: int
) -> Mapping[str, Any]:
    """A decode step, drawing included, at a context that is filled in, not computed; and the weights' byte
    floor."""
    loaded = get()
    s = loaded.shape
    n_blocks = s.blocks_for(context + n_steps + 4)
    kv = loaded.kv(batch * n_blocks, place.device)
    kv.normal_()
    tables = (
        torch.randperm(len(kv), generator=torch.Generator().manual_seed(0)).view(batch, n_blocks).tolist()
    )
    runner = loaded.runner
    prepared = runner.prepare([Segment([7], context, context, blocks) for blocks in tables], kv)
    steps = []
    for _ in range(n_steps + 3):
        place.settle()
        began = time.perf_counter()
        drawn = runner.step(prepared)
        prepared.advance([token for token in drawn if token is not None])
        steps.append(time.perf_counter() - began)
    taken = sorted(steps[3:] if len(steps) > 5 else steps)
    seconds = median(taken)
    bandwidth = copy_rate(place)["gb_per_s"] * 1e9
    floor = loaded.skeleton.n_bytes + batch * context * s.token_bytes
    return {
        "tokens_per_s": batch / seconds,
        "step_s": seconds,
        "step_s_p20": taken[len(taken) // 5],
        "step_s_p80": taken[len(taken) * 4 // 5],
        "floor_bytes": floor,
        "share_of_copy": floor / seconds / bandwidth,
    }


@torch.inference_mode()
def time_transformers(
    place: Place, kept: dict[str, Loaded], config: PreTrainedConfig, batch: int, context: int, n_steps: int
) -> Mapping[str, Any]:
    """A greedy decode step of transformers' own model (attention by torch, a cache that grows), for
    comparison."""
    kept.clear()
    torch.manual_seed(0)
    with quiet_transformers(), torch.device(place.device):
        model = AutoModelForCausalLM.from_config(config, dtype=place.dtypes[0]).eval()
    cache = DynamicCache(config=config)
    text = config.get_text_config()
    shape = batch, text.num_key_value_heads, context, text.head_dim
    for layer in range(text.num_hidden_layers):
        cache.update(random(place, place.dtypes[0], *shape), random(place, place.dtypes[0], *shape), layer)
    ids = torch.full((batch, 1), 7, device=place.device)
    steps = []
    for _ in range(n_steps + 3):
        place.settle()
        began = time.perf_counter()
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        ids = logits[:, -1:].argmax(-1)
        ids.tolist()
        steps.append(time.perf_counter() - began)
    seconds = median(steps[3:] if len(steps) > 5 else steps)
    return {"tokens_per_s": batch / seconds, "step_s": seconds}


@torch.inference_mode()
def time_prefill(place: Place, get: "partial[Loaded]") -> Mapping[str, Any]:
    """One full chunk of a prompt, from position 0."""
    loaded = get()
    n = 16 if place.interpreted else 512
    kv = loaded.kv(loaded.shape.blocks_for(n), place.device)
    runner = loaded.runner
    segment = Segment(list(range(n)), 0, n, list(range(len(kv))))
    steps = []
    for _ in range(2 if place.interpreted else 8):
        place.settle()
        began = time.perf_counter()
        runner.step(runner.prepare([segment], kv))
        steps.append(time.perf_counter() - began)
    seconds = median(steps[1:])
    return {"tokens_per_s": n / seconds, "step_s": seconds}
