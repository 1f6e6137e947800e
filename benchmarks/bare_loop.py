"""The runner's bare loop, in a process of its own: prompts in one step, then one decode step after another.

No scheduler, messages or streams: what is left is what a device could do at best. The process has a node's
environment, and what a node does to start is done before the first run. It reads one request a line and
answers with one line, both JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch

from benchmarks.smollm2_pool import PREFILL_CHUNK_TOKENS
from tokenmux.device.memory import Memory
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.weights.image import DTYPES, read_image
from tokenmux.processes import garbage_collection
from tokenmux.processes.executor_environment import executor_environment


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts of one length that run as one batch, each for `n_output` tokens, drawn greedily. No token
    ends one."""

    prompts: tuple[tuple[int, ...], ...]
    n_output: int


@dataclass(frozen=True, slots=True)
class BareRun:
    """What one run took."""

    prompts_s: float
    """Seconds of the step that takes all prompts."""
    ends_s: tuple[float, ...]
    """The end of each step, the first one that of the prompts."""
    processor_s: float
    """Processor time of all steps."""
    tokens: tuple[tuple[int, ...], ...]


class BareLoop:
    """The process; use it as a context."""

    def __init__(self, entry: Path) -> None:
        code = f"from benchmarks.bare_loop import answer; answer({str(entry)!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=executor_environment(os.environ),
        )

    def run(self, job: Job) -> BareRun:
        """Run the job. Blocks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(job)), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        tokens = tuple(tuple(row) for row in answer["tokens"])
        return BareRun(answer["prompts_s"], tuple(answer["ends_s"]), answer["processor_s"], tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self._process:  # closes its input, which ends it
            pass


def answer(entry: str) -> None:
    """The process's program: run jobs until the input ends."""
    loop = _Loop(Entry.load(Path(entry)))
    for line in sys.stdin:
        said = json.loads(line)
        job = Job(tuple(tuple(prompt) for prompt in said["prompts"]), said["n_output"])
        print(json.dumps(asdict(loop.run(job))), flush=True)
    os._exit(0)  # as a node ends: without what libraries do while Python exits


class _Loop:
    """A model that is ready to run, in memory as a device has it."""

    def __init__(self, entry: Entry) -> None:
        self._shape = entry.facts.kv
        self._dtype = DTYPES[entry.manifest.dtype]
        self._runner = Runner(
            entry.skeleton(packed=True), self._shape, prefill_chunk_tokens=PREFILL_CHUNK_TOKENS
        )
        self._weights = Memory(entry.facts.n_bytes, touch=True)
        read_image(entry.manifest, memoryview(self._weights.buffer)[: entry.facts.n_bytes], lambda _n: None)
        weights = self._weights.as_tensor()
        self._runner.pack(weights)
        self._runner.make_ready(torch.device("cpu"))
        self._runner.bind(weights)
        self._runner.record()
        self._kv: Memory | None = None
        garbage_collection.settle()

    def run(self, job: Job) -> BareRun:
        n, n_prompt = len(job.prompts), len(job.prompts[0])
        n_blocks = self._shape.blocks_for(n_prompt + job.n_output)
        kv = self._kv_of(n * n_blocks)
        # Interleaved, as after some time of serving: no sequence has adjacent blocks.
        tables = [list(range(row, n * n_blocks, n)) for row in range(n)]
        processor_s, began_s = time.process_time(), time.perf_counter()
        prompts = [Segment(p, 0, n_prompt, b) for p, b in zip(job.prompts, tables, strict=True)]
        rows = [_drawn(self._runner.step(self._runner.prepare(prompts, kv)))]
        ends_s = [time.perf_counter()]
        batch = self._runner.prepare(
            [Segment([t], n_prompt, n_prompt, b) for t, b in zip(rows[0], tables, strict=True)], kv
        )
        for _ in range(job.n_output - 1):
            rows.append(_drawn(self._runner.step(batch)))
            ends_s.append(time.perf_counter())
            batch.advance(rows[-1])
        taken_s = time.process_time() - processor_s
        return BareRun(ends_s[0] - began_s, tuple(ends_s), taken_s, tuple(zip(*rows, strict=True)))

    def _kv_of(self, n_blocks: int) -> torch.Tensor:
        """Touched memory for this many blocks, as the runner wants it."""
        shape, n_bytes = self._shape, n_blocks * self._shape.block_bytes
        if self._kv is None or len(self._kv.buffer) < n_bytes:
            self._kv = Memory(n_bytes, touch=True)
        flat = self._kv.as_tensor()[:n_bytes].view(self._dtype)
        return flat.view(-1, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim)


def _drawn(tokens: Sequence[int | None]) -> list[int]:
    return [token for token in tokens if token is not None]
