"""Every step, copy and request as a Chrome trace (chrome://tracing, ui.perfetto.dev), from the engine or the
simulator.

One process per instance with one thread per channel, and one process for all requests. The body reports every
completed operation and every ended request; a running server keeps only the newest.
"""

import json
from collections import deque
from collections.abc import Iterable
from math import inf
from typing import IO

from tokenmux.core.event import Event, StepDone
from tokenmux.core.plan import Activate, Channel, Fetch, PageIn, PageOut, Step
from tokenmux.core.record import RequestRecord
from tokenmux.core.span import Span
from tokenmux.core.started import Started

_TRACKS = {channel: channel.name.lower() for channel in Channel}
_THREADS = {name: channel.value for channel, name in _TRACKS.items()}
_REQUEST = "request"
_REQUESTS_PID = 1_000_000
"""The process of requests, which may move between instances."""


class Timeline:
    """Spans in the order of their ends, kept in memory: all of them, or the newest `most`."""

    def __init__(self, most: int | None = None) -> None:
        self.spans: deque[Span] = deque(maxlen=most)

    def add(self, instance: int, started: Started, event: Event) -> None:
        """An operation completed."""
        name, details = _described(started)
        if isinstance(event, StepDone):
            details["iterations"] = len(event.ends_s)
        self.spans.append(Span(instance, _TRACKS[started.channel], name, started.at_s, event.at_s, details))

    def add_request(self, instance: int, record: RequestRecord) -> None:
        """A request ended."""
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
    match started.operation:
        case Step(model, chunks):
            return str(model), {
                "requests": len(chunks),
                "prefill_tokens": started.work.prefill_tokens,
                "decode_rows": started.work.decode_rows,
            }
        case Activate(model) | Fetch(model):
            return str(model), {"bytes": started.n_bytes}
        case PageIn(requests) | PageOut(requests):
            return "KV", {"requests": len(requests), "bytes": started.n_bytes}
        case _:
            return "compaction", {"bytes": started.n_bytes}
