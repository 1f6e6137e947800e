"""Reshaping traces: steady state, faster or slower time, longer or shorter requests."""

from collections.abc import Iterable
from dataclasses import replace

from tokenmux.workload.trace import Trace, TraceRequest


def window(trace: Iterable[TraceRequest], start_s: float, end_s: float) -> Trace:
    """Requests that arrive in `[start_s, end_s)`, on a clock that starts at `start_s`."""
    return [
        replace(line, arrival_s=line.arrival_s - start_s)
        for line in trace
        if start_s <= line.arrival_s < end_s
    ]


def faster(trace: Iterable[TraceRequest], factor: float) -> Trace:
    """The same requests at `factor` times the rate."""
    return [replace(line, arrival_s=line.arrival_s / factor) for line in trace]


def longer(trace: Iterable[TraceRequest], input_factor: float = 1.0, output_factor: float = 1.0) -> Trace:
    """The same arrivals with scaled lengths, each at least one token."""
    return [
        line.resized(
            max(1, round(line.input_tokens * input_factor)), max(1, round(line.output_tokens * output_factor))
        )
        for line in trace
    ]


def clipped(trace: Iterable[TraceRequest], max_context: int) -> Trace:
    """Cut prompts and answers so that together they fit a context, the answer to at most half of it."""
    cut = []
    for line in trace:
        n_out = min(line.output_tokens, max_context // 2)
        n_in = min(line.input_tokens, max_context - n_out)
        cut.append(line.resized(n_in, n_out))
    return cut
