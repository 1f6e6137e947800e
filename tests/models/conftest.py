"""A small, hostile scheduler over one runner: what the families are tested with.

It serves requests in steps of random company, cuts prompts on the grid, drops the KV of a request now and
then (and replays it in random pieces), and moves blocks about. The arena begins full of NaN bytes, so a read
of what nobody wrote shows.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from tokenmux.core.facts import KvShape
from tokenmux.core.pooling import PooledRows, PoolingKind, pooled_positions
from tokenmux.core.sampling import LogProbabilities, PromptTelling, Sampling
from tokenmux.models.network.batch import GREEDY, Segment
from tokenmux.models.network.runner import Batch, Runner
from tokenmux.models.sampling.past_tokens import PastTokens


@dataclass
class Job:
    """One request: its tokens so far, how many of them have KV, and the blocks that hold it."""

    prompt: list[int]
    n_output: int
    sampling: Sampling = GREEDY
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    told: list[LogProbabilities | None] = field(default_factory=list)
    """Log-probabilities of its output, if it asks for them."""
    n_prompt_likeliest: int | None = None
    prompt_told: list[LogProbabilities] = field(default_factory=list)
    """Log-probabilities of its prompt without the first token, if it asks for them."""
    pooling: PoolingKind | None = None
    pooled: list[PooledRows] = field(default_factory=list)
    """Sums of hidden states of its prompt, if it asks for them; it draws nothing then."""
    n_cached: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def done(self) -> bool:
        if self.pooling is not None:
            return bool(self.tokens) and self.n_pooled == pooled_positions(self.pooling, len(self.prompt))[1]
        return len(self.output) >= self.n_output

    @property
    def n_pooled(self) -> int:
        return self.pooled[-1].first + self.pooled[-1].n if self.pooled else 0


class HostileScheduler:
    """Serves jobs to their end in random batches. The same seed gives the same schedule."""

    def __init__(
        self, runner: Runner, shape: KvShape, dtype: torch.dtype, *, grid: int, n_blocks: int, seed: int = 0
    ) -> None:
        self.runner, self.shape, self.grid = runner, shape, grid
        arena = torch.full((n_blocks * shape.block_bytes,), 0xFF, dtype=torch.uint8)
        self.kv = arena.view(dtype).view(
            n_blocks, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim
        )
        self.random = random.Random(seed)
        self.free = list(range(n_blocks))
        self.random.shuffle(self.free)
        self.n_preemptions = self.n_moves = self.largest_batch = 0

    def serve(
        self, jobs: Sequence[Job], *, preempt: float = 0.0, move: float = 0.0, repeat: int = 1
    ) -> list[list[int]]:
        """Run all jobs to their end; the output tokens of each."""
        for job in jobs:
            job.tokens = list(job.prompt)
            job.told = []
            job.prompt_told = []
            job.pooled = []
        while waiting := [job for job in jobs if not job.done]:
            batch = self.random.sample(waiting, self.random.randint(1, len(waiting)))
            for job in waiting:
                if job.n_cached and self.random.random() < preempt:
                    self._preempt(job)
                if job.blocks and self.random.random() < move:
                    self._move(job)
            self._step(batch, repeat)
        for job in jobs:
            self._preempt(job)
        return [job.output for job in jobs]

    def _step(self, jobs: list[Job], repeat: int) -> None:
        segments = [self._segment(job, repeat) for job in jobs]
        self.largest_batch = max(self.largest_batch, len(segments))
        batch = self.runner.prepare(segments, self.kv)
        drawn = self._draw(batch, jobs)
        self._take(jobs, segments, drawn)
        for _ in range(repeat - 1):
            if not batch.can_advance or any(job.done for job in jobs):
                return
            batch.advance([token for token in drawn if token is not None])
            drawn = self._draw(batch, jobs)
            for job, token in zip(jobs, drawn, strict=True):
                assert token is not None
                job.n_cached += 1
                job.tokens.append(token)

    def _draw(self, batch: Batch, jobs: list[Job]) -> list[int | None]:
        """The tokens of all jobs in a step, None for those that draw none."""
        tokens: list[int | None] = [None] * len(jobs)
        drawn = self.runner.draw(batch)
        for index, token in zip(batch.drawing, drawn.tokens, strict=True):
            tokens[index] = token
        for index, told in zip(batch.drawing, drawn.log_probabilities, strict=False):
            jobs[index].told.append(told)
        for index, of_prompt in drawn.told:
            jobs[index].prompt_told.extend(of_prompt)
        for index, rows in drawn.pooled:
            jobs[index].pooled.append(rows)
        return tokens

    def _take(self, jobs: list[Job], segments: list[Segment], drawn: list[int | None]) -> None:
        for job, segment, token in zip(jobs, segments, drawn, strict=True):
            job.n_cached = segment.end
            assert (token is not None) == segment.draw
            if token is not None:
                job.tokens.append(token)

    def _segment(self, job: Job, repeat: int) -> Segment:
        start, n_prompt = job.n_cached, len(job.prompt)
        end = len(job.tokens)
        if start < n_prompt:
            lines = [*range(start + self.grid, n_prompt, self.grid), *range(n_prompt, len(job.tokens) + 1)]
            end = self.random.choice(lines)
        elif start < end - 1:
            end = self.random.randint(start + 1, end)
        while len(job.blocks) * self.shape.block_size < end + repeat:
            job.blocks.append(self.free.pop())
        return Segment(
            token_ids=job.tokens[start:end],
            start=start,
            n_prompt=n_prompt,
            blocks=job.blocks,
            draw=end == len(job.tokens) and job.pooling is None,
            sampling=job.sampling,
            min_tokens=job.min_tokens,
            stop_token_ids=job.stop_token_ids,
            past=None if job.sampling.rules is None else PastTokens(job.prompt, job.output),
            telling=self._telling(job, start, end),
            pooled=self._pooled(job, start, end),
        )

    @staticmethod
    def _telling(job: Job, start: int, end: int) -> PromptTelling | None:
        """What the node would ask: each token once, however often it is computed."""
        first, last = max(start, len(job.prompt_told)), min(end, len(job.prompt) - 1)
        if job.n_prompt_likeliest is None or first >= last:
            return None
        return PromptTelling(first, tuple(job.prompt[first + 1 : last + 1]), job.n_prompt_likeliest)

    @staticmethod
    def _pooled(job: Job, start: int, end: int) -> tuple[int, int] | None:
        """What the node would ask: no position twice."""
        if job.pooling is None:
            return None
        first, last = pooled_positions(job.pooling, len(job.prompt))
        first, last = max(first, start, job.n_pooled), min(last, end)
        return (first, last) if first < last else None

    def _preempt(self, job: Job) -> None:
        self.kv[job.blocks] = torch.nan
        self._release(job.blocks)
        job.blocks, job.n_cached = [], 0
        self.n_preemptions += 1

    def _move(self, job: Job) -> None:
        others = [self.free.pop() for _ in job.blocks]
        self.kv[others] = self.kv[job.blocks]
        self.kv[job.blocks] = torch.nan
        self._release(job.blocks)
        job.blocks = others
        self.n_moves += 1

    def _release(self, blocks: list[int]) -> None:
        self.free.extend(blocks)
        self.random.shuffle(self.free)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and on a busy machine threads that wait for each other cost
    tenfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hostile_scheduler() -> type[HostileScheduler]:
    return HostileScheduler


@pytest.fixture
def job() -> type[Job]:
    return Job
