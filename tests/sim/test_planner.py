"""The planner: searches, the answer and its neighbours, and the three forms in which it is given."""

import io
import json
from pathlib import Path

import pytest

from tokenmux.engine.core.errors import ConfigError, NotFound
from tokenmux.engine.instance.timeline import Timeline
from tokenmux.engine.sim.plan_command import parse_market, plan_command
from tokenmux.engine.sim.scenario import Hardware, simulate
from tokenmux.engine.sim.search import fewest, most
from tokenmux.engine.workload.trace import TraceRequest, arrivals


@pytest.mark.parametrize("edge", range(1, 21))
def test_searches_find_the_edge(edge: int) -> None:
    assert fewest(lambda n: n >= edge, 1, 20) == edge
    assert fewest(lambda n: n >= edge, 3, 20) == max(3, edge)
    assert most(lambda n: n <= edge, 1, 20) == edge


def test_a_search_without_an_answer() -> None:
    assert fewest(lambda n: False, 1, 20) is None
    assert most(lambda n: False, 2, 20, step=2) == 2


def test_a_plan_in_three_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    plan = plan_command(
        ["6*qwen2.5-7b", "big=llama2-13b"], Hardware(), rate_rps=0.1, duration_s=30.0, as_json=True, html=page
    )
    document = json.loads(capsys.readouterr().out)
    assert document["devices"] == {
        p: plan.devices(p) for p in ("slack", "aegaeon", "request-level", "dedicated")
    }
    assert document["devices"]["slack"] == 1
    assert document["devices"]["dedicated"] == 7
    assert document["saved_share"]["dedicated"] == pytest.approx(6 / 7)
    assert plan.point("slack", 2) is not None
    assert document["dollars_per_million_tokens"] > 0
    html = page.read_text()
    assert "1 devices" in html
    assert "http" not in html


def test_a_trace_must_name_known_models() -> None:
    with pytest.raises(ConfigError, match="not in the plan: other"):
        plan_command(["qwen2.5-7b"], Hardware(), trace=[TraceRequest(0.0, "other", 1, 1)])
    with pytest.raises(NotFound):
        parse_market(["a=unheard-of"], {})
    with pytest.raises(ConfigError):
        parse_market([], {})


def test_a_timeline_is_a_chrome_trace() -> None:
    market = parse_market(["m=qwen2.5-7b"], {})
    timeline = Timeline()
    simulate(market, arrivals([TraceRequest(0.0, "m", 100, 5)], market.max_context), 1, on_done=timeline.add)
    file = io.StringIO()
    timeline.write(file)
    events = json.loads(file.getvalue())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert [span["name"] for span in spans if span["tid"] == 0] == ["m"]
    assert sum(span["args"].get("iterations", 0) for span in spans) == 5
    assert {event["args"]["name"] for event in events if event["ph"] == "M"} == {
        "instance 0",
        "copy_in",
        "compute",
    }
    assert timeline.holdings()[0][:2] == (0, "m")
