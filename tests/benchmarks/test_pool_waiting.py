"""What the benchmarks of pools count, from steps and traces that are made up; and one device that computes
nothing, behind a real node."""

import pytest

from benchmarks.migration import Span, bound_of
from benchmarks.null_executor import work_of
from benchmarks.null_pool import STEPS_OF_5_MS, Load, idle_within, measure
from benchmarks.recovery import parts_of
from tokenmux.core.facts import ModelId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.launches import OperationId, StepLaunch, StepSegment


def test_idle_is_what_lies_between_steps_within_the_time() -> None:
    steps = [(0.0, 1.0), (1.5, 2.0), (2.25, 3.0), (2.9, 4.0)]
    assert idle_within(steps, 0.0, 4.0) == pytest.approx(0.75)
    assert idle_within(steps, 1.25, 2.125) == pytest.approx(0.375)


def test_segments_of_one_token_are_rows_of_a_decode_step() -> None:
    segments = (
        StepSegment((7,), 10, 4, (0,), True, Sampling()),
        StepSegment((1, 2, 3), 5, 8, (1,), False, Sampling()),
    )
    work = work_of(StepLaunch(OperationId(1), ModelId("m"), segments, 4), iteration=2)
    assert (work.prefill_tokens, work.prefill_pairs) == (3, 21)
    assert (work.decode_rows, work.context_tokens) == (1, 13)


def test_a_recovery_has_parts() -> None:
    def span(at_s: float, took_s: float, **details: int) -> dict[str, object]:
        return {"ph": "X", "ts": at_s * 1e6, "dur": took_s * 1e6, "args": details}

    document = {
        "traceEvents": [
            span(9.0, 0.5, prefill_tokens=0),
            span(13.0, 0.25, bytes=100),
            span(13.5, 0.5, prefill_tokens=40),
        ]
    }
    parts = parts_of(document, kill_s=10.0, token_s=14.125, spawn_s=1.0)
    assert parts == pytest.approx(
        {"spawn": 1.0, "import": 2.0, "weights": 0.25, "replay": 0.75, "client": 0.125}
    )


def test_a_device_that_computes_nothing_is_served_by_a_real_node() -> None:
    (seen,) = measure(Load(STEPS_OF_5_MS, n_devices=1, n_models=1, n_requests=2), 1, slice_s=0.5)
    assert 0.0 <= seen.idle_share < 1.0
    assert seen.tokens_per_s > 0


def test_a_move_is_bounded_by_its_copies_and_one_step() -> None:
    spans = [
        Span(0.0, 2.0, 0, 2),  # a step of the source: 1 s an iteration
        Span(1.5, 3.0, 0, 0),
        Span(2.5, 3.5, 1, 0),  # beside the other copy for half a second
        Span(3.5, 5.5, 1, 4),
        Span(9.0, 9.5, 1, 0),
    ]
    assert bound_of(spans, 2.0, 4.0, target=1) == pytest.approx(1.5 + 0.5)
