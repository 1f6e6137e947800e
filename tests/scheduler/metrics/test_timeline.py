"""Timelines: what a Chrome trace has to contain, and that a bounded one forgets the oldest."""

import io
import json
from typing import Any

from tests.scheduler.instance.scenes import NEXT, A, running, step
from tokenmux.core.effects import CopyEnded, RequestEnded, StepEnded
from tokenmux.core.event import CopyDone
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Channel, PageOut, Plan
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.span import Span
from tokenmux.core.started import StartedPageOut
from tokenmux.scheduler.metrics.timeline import Timeline, chrome_trace, seconds_covered


def record(name: str, first_token_s: float | None) -> RequestRecord:
    request = Request(RequestId(name), ModelId("m"), 10, 100, 1.0, tenant="bank")
    return RequestRecord(request, FinishReason.STOP, first_token_s, 5.0, first_token_s, 4, 3)


def document(timeline: Timeline) -> list[dict[str, Any]]:
    file = io.StringIO()
    timeline.write(file)
    events: list[dict[str, Any]] = json.loads(file.getvalue())["traceEvents"]
    return events


def test_an_instance_tells_of_every_operation_that_ended() -> None:
    body = running()
    timeline = Timeline()
    step(body, NEXT, repeat=4)
    body.plan(Channel.COPY_OUT, Plan(PageOut((NEXT.request,))))
    body.now_s += 1.0
    body.complete(Channel.COPY_OUT)
    timeline.add(3, tuple(body.take(StepEnded)[-1:] + body.take(CopyEnded)[-1:]))
    metadata = [event["args"]["name"] for event in document(timeline) if event["ph"] == "M"]
    assert metadata == ["instance 3", "compute", "copy_out"]
    steps, copies = (event for event in document(timeline) if event["ph"] == "X")
    assert (steps["name"], steps["tid"], steps["args"]["iterations"]) == (A.id, Channel.COMPUTE.value, 4)
    assert (copies["name"], copies["dur"]) == ("KV", 1e6)
    assert copies["args"]["bytes"] > 0


def test_a_request_is_a_pair_with_its_first_token_between() -> None:
    timeline = Timeline()
    timeline.add(0, (RequestEnded(record("r", 2.5), ""), RequestEnded(record("never", None), "")))
    events = [event for event in document(timeline) if event["ph"] != "M"]
    assert [(e["id"], e["ph"], e["ts"]) for e in events] == [
        ("r", "b", 1e6),
        ("r", "n", 2.5e6),
        ("r", "e", 5e6),
        ("never", "b", 1e6),
        ("never", "e", 5e6),
    ]
    assert events[0]["args"]["tenant"] == "bank"
    assert events[0]["args"]["on_time"] == 3


def test_a_bounded_timeline_keeps_the_newest() -> None:
    timeline = Timeline(most=10)
    for number in range(25):
        started = StartedPageOut(number, float(number), PageOut((RequestId("r"),)), (), 7)
        timeline.add(0, (CopyEnded(started, CopyDone(number + 0.5, number)),))
    assert [span.start_s for span in timeline.spans] == [float(n) for n in range(15, 25)]
    assert [span.start_s for span in timeline.since(22.5)] == [22.0, 23.0, 24.0]
    assert seconds_covered(timeline.spans) == 9.5


def test_nothing_is_a_trace_too() -> None:
    assert json.loads(chrome_trace(()))["traceEvents"] == []
    waits = Span(0, "request", "m", 0.0, 99.0, {"request": "r"})
    assert seconds_covered([waits]) == 0.0
