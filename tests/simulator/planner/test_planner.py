"""The planner: searches, the answer and its neighbours, and the three forms in which it is given."""

import io
import json
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tokenmux.core.errors import ConfigError, DoesNotFit, NotFound
from tokenmux.scheduler.metrics.summary import summarise
from tokenmux.scheduler.metrics.timeline import Timeline, chrome_trace
from tokenmux.simulator.hardware import GB
from tokenmux.simulator.planner.capacity_plan import BASELINES, ONE_EACH, CapacityPlan, Point
from tokenmux.simulator.planner.named_models import parse_market
from tokenmux.simulator.planner.plan_page import html_report
from tokenmux.simulator.planner.plan_search import (
    PlanSearch,
    least_dedicated,
    least_instances,
    plan_here,
)
from tokenmux.simulator.planner.plan_tables import print_plan
from tokenmux.simulator.planner.question import Question, answer_question, world_of
from tokenmux.simulator.planner.search import fewest, most, replay
from tokenmux.simulator.planner.simulated_job import RELIEFS, Job, simulate_job
from tokenmux.simulator.scenario import Hardware, simulate
from tokenmux.workload.trace import TraceRequest, arrivals


@pytest.mark.parametrize("edge", range(1, 21))
def test_searches_find_the_edge(edge: int) -> None:
    assert fewest(lambda n: n >= edge, 1, 20) == edge
    assert fewest(lambda n: n >= edge, 3, 20) == max(3, edge)
    assert {fewest(lambda n: n >= edge, 1, 20, first) for first in range(1, 21)} == {edge}
    assert most(lambda n: n <= edge, 1, 20) == edge


def test_a_search_without_an_answer() -> None:
    assert fewest(lambda n: False, 1, 20) is None
    assert most(lambda n: False, 2, 20, step=2) == 2


@given(st.dictionaries(st.integers(1, 12), st.booleans()), st.integers(1, 4), st.integers(4, 12))
def test_a_replayed_search_takes_the_path_of_one_that_knows_everything(
    known: dict[int, bool], low: int, first: int
) -> None:
    """Fed what it asks for, one after the other, whatever the outcomes (they need not be monotonic)."""
    outcomes = {n: known.get(n, n % 3 == 0) for n in range(1, 13)}
    asked: list[int] = []

    def look(n: int) -> bool:
        asked.append(n)
        return outcomes[n]

    answer = fewest(look, low, 12, first)
    told: dict[int, bool] = {}
    while (progress := replay(told, low, 12, first)).needs is not None:
        told[progress.needs] = outcomes[progress.needs]
    assert progress.answer == answer
    assert progress.seen == tuple(asked)
    assert list(told) == list(dict.fromkeys(asked))
    assert replay(outcomes, low, 12, first) == progress


MODELS = ("8*qwen2.5-7b", "big=llama2-13b")


BUSY = {"rate_rps": 0.8, "duration_s": 20.0, "ttft_s": 3.0}
"""One device is not enough."""


def question(**changes: Any) -> Question:
    return Question(**({"models": MODELS, "rate_rps": 0.2, "duration_s": 30.0} | changes))


@pytest.fixture(scope="module")
def planning() -> PlanSearch:
    made = PlanSearch(world_of(question(**BUSY)), 0.99, ("slack", *BASELINES))
    plan_here(made)
    return made


def test_a_plan_does_not_depend_on_who_simulates_when(planning: PlanSearch) -> None:
    """Guesses first, several at a time, in reverse: the plan is the same, and has no trace of what was
    only guessed."""
    other = PlanSearch(planning.world, 0.99, planning.policies)
    guessed = set()
    while needed := other.needed():
        guesses = other.guesses()
        guessed.update(guesses)
        for job in [*guesses, *reversed(needed)]:
            other.tell(job, planning.known.get(job) or simulate_job(planning.world, job))
    assert guessed - planning.known.keys(), "nothing was guessed in vain: this compares too little"
    assert other.plan() == planning.plan()


def test_a_plan_looks_at_one_device_less_and_one_more(planning: PlanSearch) -> None:
    plan = planning.plan()
    for policy, n in plan.fewest.items():
        assert n is not None
        around = [point.n_instances for point in plan.around(policy)]
        assert n in around
        if policy == "slack":
            assert around == [m for m in (n - 1, n, n + 1) if m >= least_instances(policy)]
        best = plan.best(policy)
        assert best is not None
        assert best.summary.tokens_on_time >= 0.99
        short = plan.points_short(policy)
        assert short is None or short.summary.tokens_on_time < 0.99


def test_what_limits_is_what_helps(planning: PlanSearch) -> None:
    plan = planning.plan()
    assert plan.limit("dedicated") == ONE_EACH
    assert {policy for policy, shares in plan.relieved.items() if shares} == {"slack"}
    assert list(plan.relieved["slack"]) == list(RELIEFS)
    assert plan.limit("slack").split(", ")[0] in RELIEFS
    assert plan.limit("request-level") == "", "it was not asked for"


def test_host_memory_is_only_doubled_where_it_was_short(planning: PlanSearch) -> None:
    """And the figure is what doubling it would have given."""
    plan = planning.plan()
    short = plan.points_short("slack")
    assert short is not None
    assert not short.host_was_short
    job = Job("slack", short.n_instances, "host memory")
    assert job not in planning.known
    doubled = simulate_job(planning.world, job)
    assert doubled is not None
    assert plan.relieved["slack"]["host memory"] == doubled.summary.tokens_on_time
    scarce = replace(planning.world, hardware=Hardware(host_cache_bytes=60 * GB))
    point = simulate_job(scarce, replace(job, relief=""))
    assert point is not None
    assert point.host_was_short
    tight = replace(planning.world, hardware=Hardware(host_kv_bytes=GB))
    point = simulate_job(tight, replace(job, relief=""))
    assert point is not None
    assert point.host_was_short


@pytest.mark.parametrize("goal", [0.6, 0.9, 0.99])
def test_dedicated_devices_are_counted_without_simulating_too_few(goal: float) -> None:
    """Where nothing but refusals is late, the smallest pool that may keep the goal keeps it, and one smaller
    does not."""
    world = world_of(question(models=["9*qwen2.5-7b", "2*llama2-13b"], rate_rps=0.1, duration_s=60.0))
    least = least_dedicated(world.arrivals, goal)
    enough = simulate_job(world, Job("dedicated", least))
    short = simulate_job(world, Job("dedicated", least - 1))
    assert enough is not None
    assert short is not None
    assert short.summary.tokens_on_time < goal <= enough.summary.tokens_on_time


@pytest.mark.parametrize("policy", ["slack", *BASELINES])
def test_a_pool_that_is_stopped_would_have_missed(policy: str) -> None:
    """And one that is not stopped says what it says without a goal, to the last digit."""
    world = world_of(
        question(models=["9*qwen2.5-7b", "3*llama2-13b"], rate_rps=0.3, duration_s=12.0, ttft_s=2.0)
    )
    verdicts = set()
    for n in (least_instances(policy), 4, 12):
        whole = simulate_job(world, Job(policy, n))
        assert whole is not None
        for goal in (0.5, 0.99, whole.summary.tokens_on_time):
            looked = simulate_job(world, Job(policy, n, goal=goal))
            verdicts.add(looked is None)
            if looked is None:
                assert whole.summary.tokens_on_time < goal
            else:
                assert looked == whole
    assert verdicts == {True, False}


def relieved_plan(**shares: float) -> CapacityPlan:
    """Half of the tokens on time on one instance, all on two."""
    empty = summarise([])
    points = tuple(
        Point("slack", n, replace(empty, tokens_on_time=share), 0.5, 0.0, 0.0, 0.0, 0, 0)
        for n, share in ((1, 0.5), (2, 1.0))
    )
    relieved = {"slack": {name.replace("_", " "): share for name, share in shares.items()}}
    return CapacityPlan(Hardware(), 1, 1, 1.0, 0.99, {"slack": 2}, points, relieved, ())


def test_a_limit_has_to_make_up_for_a_good_part_of_what_is_missing() -> None:
    assert relieved_plan(compute=0.5, copies=0.9, device_memory=0.7).limit("slack") == "copies"
    assert relieved_plan(compute=0.9, copies=0.5, host_memory=0.88).limit("slack") == "compute, host memory"
    assert relieved_plan(compute=0.5, copies=0.51).limit("slack") == "no resource alone"
    assert relieved_plan().limit("slack") == "nothing"


def test_memory_can_be_what_limits() -> None:
    """Two models of 26 GB and little traffic on a device of which 40 GB can be used: they do not fit
    together."""
    hardware = Hardware(usable=0.5, copy_bytes_per_s=10e9)
    trace = [TraceRequest(0.9 * i, f"llama2-13b-{i % 2}", 100, 30, ttft_s=3.0) for i in range(60)]
    plan = answer_question(question(models=["2*llama2-13b"], hardware=hardware, trace=trace, compare=False))
    assert plan.fewest == {"slack": 2}
    assert plan.limit("slack") == "copies, device memory", "faster swaps, or no need to swap"


def test_a_plan_with_a_prefix_cache_says_what_it_saves(capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts of 10 cells, 9 of which all have: without a cache two devices do not keep up."""
    common = tuple(range(36))
    trace = [
        TraceRequest(
            0.12 * i,
            "qwen2.5-7b",
            20480,
            20,
            ttft_s=2.0,
            hash_ids=(*common, *range(100 + 4 * i, 104 + 4 * i)),
        )
        for i in range(150)
    ]
    asked = question(models=["qwen2.5-7b", "other=llama2-13b"], trace=trace, compare=False)
    plan = answer_question(replace(asked, prefix_cache=True))
    with_cache, without = plan.fewest["slack"], plan.fewest["unshared"]
    assert with_cache == 1
    assert without is None or without > 1
    best = plan.best("slack")
    assert best is not None
    assert best.prefix_hit_share == pytest.approx(0.9, abs=0.05)
    assert {p.prefix_hit_share for p in plan.points if p.policy == "unshared"} == {0.0}
    print_plan(plan, Console(width=80))
    told = capsys.readouterr().out
    assert f"others had computed {best.prefix_hit_share:.1%} on 1" in told
    assert "…" not in told
    assert "prompts shared" in html_report(plan)

    unshared = answer_question(asked)
    assert set(unshared.fewest) == {"slack"}
    assert unshared.fewest["slack"] == without
    print_plan(unshared, Console(width=80))
    told = capsys.readouterr().out
    assert "shared" not in told
    assert "others had computed" not in told


def test_a_prefix_cache_needs_a_trace_that_says_what_is_shared() -> None:
    with pytest.raises(ConfigError, match="hash_ids"):
        world_of(question(prefix_cache=True))


def test_a_plan_as_a_document_a_trace_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    plan = answer_question(question(**BUSY), with_spans=True)
    document = json.loads(json.dumps(plan.as_dict(True, 2.0)))
    assert document["devices"] == {p: plan.devices(p) for p in ("slack", *BASELINES)}
    assert document["devices"]["dedicated"] == 9
    assert document["saved_share"]["dedicated"] == pytest.approx(1 - document["devices"]["slack"] / 9)
    assert document["limit"]["dedicated"] == ONE_EACH
    costs = document["dollars_per_million_tokens"]
    assert costs["dedicated"] == pytest.approx(costs["slack"] * 9 / document["devices"]["slack"])
    assert {event["ph"] for event in json.loads(chrome_trace(plan.spans))["traceEvents"]} == {
        "M",
        "X",
        "b",
        "n",
        "e",
    }
    print_plan(plan, Console(file=sys.stdout, width=80), with_cost=True)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    for part in ("one device per model", "request-level", "Wh/M tokens", "device memory"):
        assert part in shown


class Page(HTMLParser):
    """Counts tags, and insists that they close in order."""

    VOID = frozenset({"meta", "line", "circle", "rect", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.numbers: list[float] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)
        self.numbers += [
            float(value) for name, value in attrs if value and name in ("x", "y", "cx", "cy", "width")
        ]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_well_formed(planning: PlanSearch) -> None:
    html = html_report(planning.plan(), with_cost=True)
    for needed_from_elsewhere in ("src=", "href=", "@import", "url(", "<script"):
        assert needed_from_elsewhere not in html
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.seen["svg"] == 2
    assert page.seen["polyline"] == 4, "one line a policy"
    assert page.seen["circle"] == len(planning.plan().points)
    assert page.seen["rect"] > 10
    assert all(0 <= number <= 760 for number in page.numbers)


def test_names_are_text_on_the_page() -> None:
    trace = [TraceRequest(0.1 * i, "<b>&", 100, 30) for i in range(9)]
    plan = answer_question(question(models=["<b>&=qwen2.5-7b"], trace=trace, compare=False), with_spans=True)
    html = html_report(plan)
    assert "&lt;b&gt;&amp;" in html
    assert "<b>&" not in html


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"trace": [TraceRequest(0.0, "other", 1, 1)]},
            ConfigError,
            "not in the plan: other; name each as other=ARCH",
        ),
        ({"trace": []}, ConfigError, "the trace has no requests"),
        ({"rate_rps": 1e300}, ConfigError, "more than can be simulated"),
        ({"rate_rps": float("inf")}, ConfigError, "more than can be simulated"),
        ({"rate_rps": 0.0}, ConfigError, "no request comes within 30 s at these rates: raise --rate"),
        ({"models": ["a=unheard-of"]}, NotFound, "no architecture unheard-of"),
        ({"models": ["²*qwen2.5-7b"]}, NotFound, "no architecture"),
        ({"models": []}, ConfigError, "name at least one model"),
        ({"models": ["llama2-70b"]}, DoesNotFit, "128.5 GiB of weights and the device 67.1 GiB"),
        ({"models": ["qwen2.5-7b@-1"]}, ConfigError, "the rate after @ must be"),
        ({"models": ["qwen2.5-7b@nan"]}, ConfigError, "the rate after @ must be"),
    ],
)
def test_what_cannot_be_planned_is_told_with_the_remedy(
    changes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        world_of(question(**changes))


def test_rates_may_differ_by_model() -> None:
    world = world_of(question(models=["busy=qwen2.5-7b@2", "idle=qwen2.5-7b@0", "rest=qwen2.5-7b"]))
    n = Counter(arrival.request.model for arrival in world.arrivals)
    assert n["busy"] > 30
    assert n["idle"] == 0
    assert 0 < n["rest"] < 20


def test_a_recorded_trace_begins_with_its_first_request_and_keeps_to_contexts() -> None:
    notes: list[str] = []
    trace = [TraceRequest(5000.0, "m", 10, 5, ttft_s=3.0), TraceRequest(5001.5, "m", 90_000, 5)]
    world = world_of(question(models=["m=yi-1.5-9b"], trace=trace), notes.append)
    assert [arrival.request.arrival_s for arrival in world.arrivals] == [0.0, 1.5]
    assert world.arrivals[1].request.n_prompt + world.arrivals[1].n_output == 4096
    assert notes == ["1 of 2 requests are longer than their model's context, and planned as cut to it"]
    assert [a.request.service.ttft_s for a in world.arrivals] == [3.0, 10.0]
    asked = world_of(question(models=["m=yi-1.5-9b"], trace=trace, ttft_s=1.0))
    assert {a.request.service.ttft_s for a in asked.arrivals} == {1.0}


def test_a_timeline_is_a_chrome_trace() -> None:
    market = parse_market(["m=qwen2.5-7b"], {})
    timeline = Timeline()
    simulate(
        market,
        arrivals([TraceRequest(0.0, "m", 100, 5)], market.max_context),
        1,
        on_effects=lambda i, _, effects: timeline.add(i, effects),
    )
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
        "requests",
    }
    assert [event["id"] for event in events if event["ph"] == "e"] == ["0"]
    step = next(span for span in timeline.spans if span.track == "compute")
    assert (step.instance, step.name) == (0, "m")
