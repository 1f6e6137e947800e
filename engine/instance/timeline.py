"""Every step and copy as a Chrome trace (chrome://tracing, ui.perfetto.dev), from either body.

One process per instance, one thread per channel. Bodies call `add` for every operation that completed.
"""

import json
from typing import IO, NamedTuple

from tokenmux.engine.core.event import Event, StepDone
from tokenmux.engine.core.plan import Activate, Channel, Fetch, PageIn, PageOut, Step
from tokenmux.engine.instance.started import Started


class Span(NamedTuple):
    """One operation on one channel of one instance."""

    instance: int
    channel: Channel
    name: str
    start_s: float
    end_s: float
    details: dict[str, object]


class Timeline:
    """Spans in the order of their ends, kept in memory until written."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, instance: int, started: Started, event: Event) -> None:
        name, details = _described(started)
        if isinstance(event, StepDone):
            details["iterations"] = len(event.ends_s)
        self.spans.append(Span(instance, started.channel, name, started.at_s, event.at_s, details))

    def holdings(self) -> list[tuple[int, str, float, float]]:
        """Steps as (instance, model, start, end) in seconds: who held which device, for plots."""
        return [(s.instance, s.name, s.start_s, s.end_s) for s in self.spans if s.channel is Channel.COMPUTE]

    def write(self, file: IO[str]) -> None:
        """Write the JSON document; its times are microseconds."""
        events: list[dict[str, object]] = [
            {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": f"instance {pid}"}}
            for pid in sorted({span.instance for span in self.spans})
        ]
        events += [
            {
                "name": "thread_name",
                "ph": "M",
                "pid": pid,
                "tid": channel.value,
                "args": {"name": channel.name.lower()},
            }
            for pid, channel in sorted({(span.instance, span.channel) for span in self.spans})
        ]
        events += [
            {
                "name": span.name,
                "ph": "X",
                "pid": span.instance,
                "tid": span.channel.value,
                "ts": round(span.start_s * 1e6, 3),
                "dur": round((span.end_s - span.start_s) * 1e6, 3),
                "args": span.details,
            }
            for span in self.spans
        ]
        json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)


def _described(started: Started) -> tuple[str, dict[str, object]]:
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
