"""One device through the whole server against the runner's bare loop, over the same batches in the same run.

Eight streams of SmolLM2-135M with prompts of one length, greedy. Short served and bare runs alternate, each a
batch of its own tokens, and every token must be the same in both. Compared are the fastest 16 steps in a row
of each, as a client sees them: on a shared machine a step takes twice as long while others work. Whole runs
with their prompts stand beside it, and so does the processor time of what carries steps out, which has no
gaps between steps in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import report, server_processes
from benchmarks.bare_loop import BareLoop, BareRun, Job
from benchmarks.smollm2_pool import MODEL, random_prompt, smollm2_pool
from benchmarks.streams import SeenTogether, stream_together
from tokenmux.client import AsyncClient

BATCH, N_PROMPT, N_OUTPUT = 8, 32, 32
IN_A_ROW = 16
"""Several bursts of the policy, so that what happens between two of them counts."""


@dataclass(frozen=True, slots=True)
class Round:
    """A job served and bare, one right after the other."""

    served: SeenTogether
    processor_s: Mapping[str, float]
    """Of the server's processes, by role."""
    bare: BareRun

    @property
    def served_over_runner(self) -> float:
        """Speed of the server, of that of the bare loop, where each was at its fastest."""
        return fastest_s(self.bare.ends_s) / fastest_s(self.served.full_batch_s)

    @property
    def whole_over_runner(self) -> float:
        """The same over whole runs, from the first request to the last token."""
        decode_s = self.bare.ends_s[-1] - self.bare.ends_s[0]
        return (self.bare.prompts_s + decode_s) / self.served.whole_s

    @property
    def executor_over_runner(self) -> float:
        """Processor time of the executor, of that of the bare loop."""
        return self.processor_s["executor"] / self.bare.processor_s

    def us_per_token(self, role: str) -> float:
        """Processor time of the server's processes of this role."""
        return 1e6 * self.processor_s.get(role, 0.0) / self.served.n_tokens


def fastest_s(ends_s: Sequence[float]) -> float:
    """Seconds of the fastest `IN_A_ROW` steps in a row, given the ends of all."""
    return min(end - begin for begin, end in zip(ends_s, ends_s[IN_A_ROW:], strict=False))


async def measure(cache: Path, n_rounds: int) -> list[Round]:
    """Serve the model, and alternate. The first round is dropped."""
    rounds = []
    async with smollm2_pool(cache) as pool:
        with BareLoop(pool.entry.path) as bare:
            for index in range(n_rounds + 1):
                taken = await one_round(pool.client, bare, job_of(index), served_first=index % 2 == 0)
                rounds += [taken] if index else []
    return rounds


async def one_round(client: AsyncClient, bare: BareLoop, job: Job, *, served_first: bool) -> Round:
    run = None if served_first else bare.run(job)
    before = server_processes.processor_s()
    seen = await stream_together(client, MODEL, job.prompts, job.n_output)
    after = server_processes.processor_s()
    run = run or bare.run(job)
    if tuple(tuple(stream.tokens) for stream in seen.streams) != run.tokens:
        raise AssertionError("the server's tokens are not those of the bare loop")
    return Round(seen, {role: after[role] - before.get(role, 0.0) for role in after}, run)


def job_of(index: int) -> Job:
    return Job(tuple(random_prompt(BATCH * index + row, N_PROMPT) for row in range(BATCH)), N_OUTPUT)


def metrics_of(rounds: list[Round]) -> dict[str, float]:
    """Medians, with percentiles, and a table for people."""
    metrics = report.spread("served_over_runner", [r.served_over_runner for r in rounds])
    metrics |= report.spread("whole_over_runner", [r.whole_over_runner for r in rounds])
    metrics |= report.spread("executor_over_runner", [r.executor_over_runner for r in rounds])
    for role in sorted({role for r in rounds for role in r.processor_s} - {"other"}):
        metrics[f"{role}_us_per_token"] = median(r.us_per_token(role) for r in rounds)
    metrics["served_tokens_per_s"] = median(
        BATCH * IN_A_ROW / fastest_s(r.served.full_batch_s) for r in rounds
    )
    report.table(
        f"One device: {BATCH} streams of SmolLM2-135M, of the runner's bare loop",
        ["ratio", "median", "p20", "p80"],
        [
            [name, metrics[name], metrics[f"{name}_p20"], metrics[f"{name}_p80"]]
            for name in ("served_over_runner", "whole_over_runner", "executor_over_runner")
        ],
    )
    return metrics
