"""Log-probabilities of prompts, against transformers' logits in float32: every family, hostile company."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.test_families import GRID, Served, load, prompts
from tokenmux.core.facts import KvShape
from tokenmux.core.sampling import LogProbabilities, PromptTelling, Sampling
from tokenmux.models.catalogue import tiny
from tokenmux.models.network import runner
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.told_rows import run_once

N_OUTPUT = 6


@pytest.fixture(scope="module", params=sorted(tiny.FAMILIES))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tiny.create(request.param, tmp_path_factory.mktemp(request.param), dtype=torch.float32)
    return load(folder, torch.float32)


def check(model: Any, prompt: list[int], told: list[LogProbabilities], n_likeliest: int) -> None:
    """Raise unless these are the log-probabilities of all tokens but the first."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, :-1]
    expected = torch.log_softmax(logits.double(), -1)
    assert len(told) == len(prompt) - 1
    for row, token, one in zip(expected, prompt[1:], told, strict=True):
        assert one.drawn == pytest.approx(float(row[token]), abs=1e-4)
        values = [value for _, value in one.likeliest]
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(row.topk(n_likeliest).values.tolist(), abs=1e-4)
        assert values == pytest.approx([float(row[other]) for other, _ in one.likeliest], abs=1e-4)


def test_they_equal_transformers_and_change_no_token(
    served: Served, hostile_scheduler: Any, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However prompts are cut, whatever is dropped and replayed, and few rows of logits at a time."""
    monkeypatch.setattr(runner, "TOLD_AT_ONCE", 5)

    def jobs(n_likeliest: int | None) -> list[Any]:
        asking = [job(p, N_OUTPUT, n_prompt_likeliest=n_likeliest) for p in prompts()]
        return [*asking, *(job(p, N_OUTPUT, Sampling(1.0, seed=3, n_likeliest=2)) for p in prompts())]

    def served_in_company(n_likeliest: int | None) -> tuple[list[list[int]], list[Any]]:
        scheduler = hostile_scheduler(served.runner, served.shape, served.dtype, grid=GRID, n_blocks=400)
        mine = jobs(n_likeliest)
        return scheduler.serve(mine, preempt=0.3, move=0.1, repeat=2), mine

    plain, _ = served_in_company(None)
    outputs, mine = served_in_company(4)
    assert outputs == plain
    for one in mine[: len(prompts())]:
        check(served.reference, one.prompt, one.prompt_told, 4)
    assert not any(one.prompt_told for one in mine[len(prompts()) :])


def test_company_changes_no_bit_of_them(tmp_path: Path, hostile_scheduler: Any, job: Any) -> None:
    served = load(tiny.create("llama", tmp_path, dtype=torch.float32), torch.bfloat16)

    def scheduler(seed: int) -> Any:
        return hostile_scheduler(
            served.runner, served.shape, served.dtype, grid=GRID, n_blocks=400, seed=seed
        )

    def asking() -> list[Any]:
        return [job(p, 1, n_prompt_likeliest=3) for p in prompts()]

    alone = asking()
    for one in alone:
        scheduler(0).serve([one])
    together = asking()
    scheduler(1).serve([*together, *(job(p, N_OUTPUT) for p in prompts())], preempt=0.1)
    assert [one.prompt_told for one in together] == [one.prompt_told for one in alone]


def widest(monkeypatch: pytest.MonkeyPatch, served: Served, segment: Segment, kv: torch.Tensor) -> int:
    """The most rows of logits that are there at once in a step of one segment."""
    seen: list[int] = []
    tell = runner.log_probabilities

    def watching(logits: torch.Tensor, *arguments: Any) -> Any:
        seen.append(len(logits))
        return tell(logits, *arguments)

    monkeypatch.setattr(runner, "log_probabilities", watching)
    drawn = served.runner.draw(served.runner.prepare([segment], kv))
    assert sum(len(values) for _, values in drawn.told) == len(segment.token_ids) - 1
    return max(seen)


def test_a_long_chunk_is_told_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = load(tiny.create("llama", tmp_path, dtype=torch.float32), torch.float32)
    s: KvShape = served.shape
    kv = torch.zeros(60, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim)
    ids = [i % 250 for i in range(400)]
    segment = Segment(ids, 0, 400, list(range(60)), telling=PromptTelling(0, tuple(ids[1:]), 1))
    assert widest(monkeypatch, served, segment, kv) <= runner.TOLD_AT_ONCE


def test_what_was_told_before_is_left_out_of_a_chunk_that_is_computed_again(tmp_path: Path) -> None:
    served = load(tiny.create("gpt2", tmp_path, dtype=torch.float32), torch.float32)
    s: KvShape = served.shape
    ids = [i % 250 for i in range(48)]

    def told(telling: PromptTelling) -> tuple[LogProbabilities, ...]:
        kv = torch.zeros(10, s.n_layers, 2, s.n_kv_heads, s.block_size, s.head_dim)
        segment = Segment(ids, 0, 60, list(range(10)), draw=False, telling=telling)
        ((_, values),) = served.runner.draw(served.runner.prepare([segment], kv)).told
        return values

    whole = told(PromptTelling(0, tuple(ids[1:]), 2))
    assert told(PromptTelling(20, tuple(ids[21:31]), 2)) == whole[20:30]


def test_layers_run_once_and_are_then_as_before() -> None:
    layers = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2)
    with run_once(layers):
        first = layers(x)
        assert layers(2 * x) is first
    assert not torch.equal(layers(2 * x), first)
    assert "forward" not in vars(layers)
