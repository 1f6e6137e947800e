"""Every step, copy and request as a Chrome trace (chrome://tracing, ui.perfetto.dev), from the engine or the
simulator.

One process per instance with one thread per channel, and one process for all requests. Counted from the
effects of instances: every operation and every request that ended. A running server keeps the newest only.
"""

import json
from collections import deque
from collections.abc import Iterable
from math import inf
from typing import IO

from tokenmux.core.effects import CopyEnded, Effects, RequestEnded, StepEnded
from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.plan import Channel
from tokenmux.core.record import RequestRecord
from tokenmux.core.span import Span
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)

_TRACKS = {channel: channel.name.lower() for channel in Channel}
_THREADS = {name: channel.value for channel, name in _TRACKS.items()}
_REQUEST = "request"
_REQUESTS_PID = 1_000_000
"""The process of requests, which may move between instances."""


class Timeline:
    """Spans in the order of their ends, kept in memory: all of them, or the newest `most`."""

    def __init__(self, most: int | None = None) -> None:
        self.spans: deque[Span] = deque(maxlen=most)

    def add(self, instance: int, effects: Effects) -> None:
        """Note the operations and requests that ended."""
        for effect in effects:
            match effect:
                case StepEnded(started, done) | CopyEnded(started, done):
                    self._add_operation(instance, started, done)
                case RequestEnded(record):
                    self._add_request(instance, record)
                case _:
                    pass

    def _add_operation(self, instance: int, started: Started, done: StepDone | CopyDone) -> None:
        name, details = _described(started)
        if isinstance(done, StepDone):
            details["iterations"] = len(done.ends_s)
        self.spans.append(Span(instance, _TRACKS[started.channel], name, started.at_s, done.at_s, details))

    def _add_request(self, instance: int, record: RequestRecord) -> None:
        request = record.request
        details: dict[str, str | int | float] = {
            "request": request.id,
            "tenant": request.tenant,
            "prompt_tokens": request.n_prompt,
            "tokens": record.n_tokens,
            "on_time": record.n_on_time,
            "ended": record.reason.value,
        }
        if record.first_token_s is not None:
            details["first_token_s"] = record.first_token_s
        self.spans.append(Span(instance, _REQUEST, request.model, request.arrival_s, record.end_s, details))

    def since(self, from_s: float) -> tuple[Span, ...]:
        """Spans that ended at `from_s` or later."""
        return tuple(span for span in self.spans if span.end_s >= from_s)

    def write(self, file: IO[str]) -> None:
        """Write the JSON document."""
        file.write(chrome_trace(self.spans))


def chrome_trace(spans: Iterable[Span]) -> str:
    """The JSON document of a Chrome trace, with times in microseconds.

    Format: "Trace Event Format" of the Chromium project. Operations are complete events ("X"). Requests
    overlap, so each is a pair of asynchronous events ("b", "e") with its id, and an instant ("n") at its
    first token.
    """
    spans = list(spans)
    processes = {pid: f"instance {pid}" for pid in sorted({s.instance for s in spans if s.track in _THREADS})}
    if any(span.track == _REQUEST for span in spans):
        processes[_REQUESTS_PID] = "requests"
    events: list[dict[str, object]] = [
        {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": name}}
        for pid, name in processes.items()
    ]
    threads = sorted({(span.instance, span.track) for span in spans if span.track in _THREADS})
    events += [
        {"name": "thread_name", "ph": "M", "pid": pid, "tid": _THREADS[track], "args": {"name": track}}
        for pid, track in threads
    ]
    for span in spans:
        events += _request_events(span) if span.track == _REQUEST else [_operation_event(span)]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def seconds_covered(spans: Iterable[Span]) -> float:
    """Seconds from the first beginning to the last end of the operations among them."""
    start_s, end_s = inf, -inf
    for span in spans:
        if span.track != _REQUEST:
            start_s, end_s = min(start_s, span.start_s), max(end_s, span.end_s)
    return max(0.0, end_s - start_s)


def _operation_event(span: Span) -> dict[str, object]:
    return {
        "name": span.name,
        "ph": "X",
        "pid": span.instance,
        "tid": _THREADS[span.track],
        "ts": _microseconds(span.start_s),
        "dur": _microseconds(span.end_s - span.start_s),
        "args": span.details,
    }


def _request_events(span: Span) -> list[dict[str, object]]:
    common = {
        "name": span.name,
        "cat": _REQUEST,
        "id": span.details["request"],
        "pid": _REQUESTS_PID,
        "tid": 0,
    }
    events: list[dict[str, object]] = [
        {**common, "ph": "b", "ts": _microseconds(span.start_s), "args": span.details},
        {**common, "ph": "e", "ts": _microseconds(span.end_s)},
    ]
    first_token_s = span.details.get("first_token_s")
    if isinstance(first_token_s, float):
        events.insert(1, {**common, "name": "first token", "ph": "n", "ts": _microseconds(first_token_s)})
    return events


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _described(started: Started) -> tuple[str, dict[str, str | int | float]]:
    match started:
        case StartedStep(operation=step, model=model, work=work):
            return str(model.id), {
                "requests": len(step.chunks),
                "prefill_tokens": work.prefill_tokens,
                "decode_rows": work.decode_rows,
            }
        case StartedActivation(model=model) | StartedFetch(model=model):
            return str(model.id), {"bytes": started.n_bytes}
        case StartedPageIn(paged=paged) | StartedPageOut(paged=paged):
            return "KV", {"requests": len(paged), "bytes": started.n_bytes}
        case StartedCompaction():
            return "compaction", {"bytes": started.n_bytes}
