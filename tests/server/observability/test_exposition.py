"""What Prometheus is shown: every family parses, obeys the rules of naming, and has the figures of its
source."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric

from tests.server.observability.exposed import families_of, one_node, samples_of, totals_of
from tests.server.sample_reports import INSTANCE_COUNTS, MODEL_COUNTS, service
from tokenmux.core.errors import DeadlineExceeded, Ended, InternalError, NotFound, SlowReader
from tokenmux.core.facts import FIRST_INSTANCE, ModelId
from tokenmux.core.request import FinishReason
from tokenmux.scheduler.metrics.counter_table import Row, Table
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE, SERVICE_TABLE
from tokenmux.scheduler.metrics.histogram import Durations
from tokenmux.server.front.generation import FinishInfo
from tokenmux.server.front.request_counters import RequestCounters
from tokenmux.server.front.server_totals import ServerTotals
from tokenmux.server.observability import exposition
from tokenmux.server.observability.exposition import Exposition, TextFormat, format_for
from tokenmux.server.observability.families import ALL_FAMILIES, NOT_SHOWN
from tokenmux.server.observability.family import MetricKind

OWN = {"process"}
"""The beginnings of families of the front's own process, which the library makes."""


def info(reason: FinishReason = FinishReason.STOP, **times: float) -> FinishInfo:
    whole = {"queue_s": 0.5, "ttft_s": 0.7, "total_s": 3.0, "loading_s": 0.2} | times
    return FinishInfo(reason, None, None, 3, 4, 4, seed=1, **whole)


def busy_server() -> ServerTotals:
    """Two models, a tenant, a device, and one end of each kind."""
    nodes, status, _ = one_node("letters", "digits")
    requests = RequestCounters()
    model = ModelId("letters")
    for end in (
        info(),
        info(FinishReason.LENGTH),
        Ended("left"),
        SlowReader("slow"),
        DeadlineExceeded("late"),
        InternalError("broke"),
    ):
        requests.ended(model, end)
    with pytest.raises(NotFound), requests.refusing():
        raise NotFound("no such model")
    return totals_of(nodes, "letters", "digits", "odd", status=status, requests=requests)


def own(families: Sequence[Metric]) -> list[Metric]:
    return [family for family in families if family.name.partition("_")[0] not in OWN]


@pytest.mark.parametrize("form", TextFormat)
def test_every_family_is_there_with_its_type_help_and_labels(form: TextFormat) -> None:
    found = {family.name: family for family in own(families_of(busy_server(), form))}
    assert len(found) == len(ALL_FAMILIES)
    for family in ALL_FAMILIES:
        name = (
            family.full_name.removesuffix("_total") if family.kind is MetricKind.COUNTER else family.full_name
        )
        metric = found[name]
        assert (metric.type, metric.documentation) == (family.kind.value, family.help)
        assert metric.samples, name
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(family.labels)


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda family: family.name)
def test_names_are_as_promtool_wants_them(family: Any) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name)
    assert family.name.endswith("_total") == (family.kind is MetricKind.COUNTER)
    assert not re.search(
        r"_(ms|milliseconds|minutes|kib|mib|gib|kilobytes|counter|gauge|histogram)(_|$)", family.name
    )
    assert not family.name.endswith(("_count", "_sum", "_bucket"))
    if family.kind is MetricKind.HISTOGRAM:
        assert family.name.endswith("_seconds")
    if "bytes" in family.name:
        assert family.name.removesuffix("_total").endswith("_bytes")
    assert family.help.endswith(".")
    assert family.help[0].isupper() or family.help.startswith("1")


def test_figures_are_those_of_their_sources() -> None:
    samples = samples_of(busy_server())
    assert samples["num_requests_running", ("letters",)] == 2
    assert samples["num_requests_waiting", ("letters",)] == 1
    assert samples["num_requests_paged_out", ("digits",)] == 3
    assert samples["num_tokens_overdue", ("digits",)] == 14
    assert samples["generation_tokens_total", ("letters",)] == 104
    assert samples["generation_tokens_total", ("digits",)] == 204
    assert samples["generation_tokens_total", ("odd",)] == 0
    assert samples["prefix_cache_queries_total", ("letters",)] == 103 + 107
    assert samples["tenant_gpu_seconds_total", ("team",)] == 1000.5
    assert samples["swaps_total", ("letters", "again")] == 52
    assert samples["device_busy_seconds_total", ("copy_out", "0")] == 10
    assert samples["device_recoveries_total", ("0",)] == 15
    assert samples["kv_cache_usage_perc", ("0",)] == 300 / 8_000
    assert samples["devices", ("serving",)] == 1
    assert samples["devices", ("out",)] == 0
    assert samples["model_residency", ("letters", "resident")] == 1
    assert samples["model_residency", ("letters", "disk")] == 0
    assert ("model_residency", ("odd", "disk")) not in samples
    assert samples["model_refused", ("odd",)] == 1
    assert samples["devices_saved", ()] == 35 / 10 - 1
    assert samples["node_recoveries_total", ()] == 3
    assert samples["requests_refused_total", ("not_found",)] == 1
    assert samples["requests_refused_total", ("overloaded",)] == 0  # or a first refusal were no increase
    ends = {reason: samples["request_success_total", (reason, "letters")] for reason in ENDS}
    assert ends == {"stop": 1, "length": 1, "abort": 2, "expired": 1, "error": 1}


ENDS = ("stop", "length", "abort", "expired", "error")


def test_histograms_add_up() -> None:
    samples = samples_of(busy_server())
    assert samples["e2e_request_latency_seconds_count", ("letters",)] == 2
    assert samples["e2e_request_latency_seconds_sum", ("letters",)] == 6.0
    assert samples["request_queue_time_seconds_sum", ("letters",)] == 1.0
    assert samples["request_loading_time_seconds_sum", ("letters",)] == 0.4
    for bound, n in (("2.5", 0), ("4.0", 2), ("630.0", 2), ("+Inf", 2)):
        assert samples["e2e_request_latency_seconds_bucket", (bound, "letters")] == n
    assert samples["time_to_first_token_seconds_count", ("letters",)] == 100 + 20 + 12
    shortest = min(
        float(labels[0]) for name, labels in samples if name == "time_to_first_token_seconds_bucket"
    )
    assert shortest == 0.001


def test_a_model_without_requests_has_no_histograms() -> None:
    """Or a catalogue of 1,000 models had 200,000 series."""
    nodes, status, _ = one_node("letters")
    samples = samples_of(totals_of(nodes, "letters", "idle", status=status))
    of_idle = [name for name, labels in samples if "idle" in labels]
    assert not [name for name in of_idle if name.endswith("_bucket")]
    assert len(of_idle) < 40


def test_names_of_strangers_make_no_series() -> None:
    nodes, status, _ = one_node("letters", "gone", strangers=[f"stranger{i}" for i in range(300)])
    samples = samples_of(totals_of(nodes, "letters", status=status))
    tenants = {labels[0] for name, labels in samples if name.startswith("tenant_")}
    assert tenants == {"team", "(others)"}
    others = sum(1000 * (i + 2) + 0.5 for i in range(300))
    assert samples["tenant_gpu_seconds_total", ("(others)",)] == others
    assert not [name for name, labels in samples if "gone" in labels]


UNIQUE = 7_777_777


@pytest.mark.parametrize(
    ("table", "counter"),
    [
        (table, counter)
        for table in (SERVICE_TABLE, MODEL_TABLE, INSTANCE_TABLE)
        for counter in table.counters
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_counter_of_the_tables_is_shown(table: Table, counter: Any) -> None:
    """A new counter needs a family, or a reason for having none."""
    rows: dict[int, Row] = {
        id(SERVICE_TABLE): service(0),
        id(MODEL_TABLE): MODEL_COUNTS,
        id(INSTANCE_TABLE): INSTANCE_COUNTS,
    }
    values = table.named(rows[id(table)])
    values[counter.name] = (
        Durations((UNIQUE,), 0.0) if isinstance(values[counter.name], Durations) else UNIQUE
    )
    row = tuple(values.values())
    nodes, status, _ = one_node("letters")
    if table is SERVICE_TABLE:
        nodes.services.take([(ModelId("letters"), row)])
        nodes.tenants.take([("team", row)])
    elif table is MODEL_TABLE:
        nodes.models.take([(ModelId("letters"), row)])
    else:
        nodes.devices.take([(FIRST_INSTANCE, row)])
    shown = UNIQUE in samples_of(totals_of(nodes, "letters", status=status)).values()
    as_in_service = table is MODEL_TABLE and counter.help == "As in its service."
    assert shown == (counter.name not in NOT_SHOWN and not as_in_service), counter.name


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", TextFormat.PLAIN),
        ("*/*", TextFormat.PLAIN),
        ("text/plain", TextFormat.PLAIN),
        ("application/openmetrics-text", TextFormat.OPEN_METRICS),
        ("Application/OpenMetrics-Text; version=1.0.0", TextFormat.OPEN_METRICS),
        (
            # What Prometheus 2.42 sends
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            + "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            TextFormat.OPEN_METRICS,
        ),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.9", TextFormat.PLAIN),
        ("application/openmetrics-text;q=0", TextFormat.PLAIN),
        ("application/openmetrics-text;q=nan;;,,=", TextFormat.PLAIN),
        ("application/openmetrics-text;q=much", TextFormat.PLAIN),
    ],
)
def test_the_format_that_is_asked_for(accept: str, form: TextFormat) -> None:
    assert format_for(accept) is form


class Maker:
    """Counts how often totals are taken."""

    def __init__(self) -> None:
        self.n = 0
        self.now_s = 0.0
        self.fails = False

    def totals(self) -> ServerTotals:
        self.n += 1
        if self.fails:
            raise ZeroDivisionError
        nodes, status, _ = one_node("letters")
        return totals_of(nodes, "letters", status=status)

    def exposition(self) -> Exposition:
        return Exposition(self.totals, lambda: self.now_s)


async def test_a_storm_of_scrapes_is_one() -> None:
    maker = Maker()
    exposed = maker.exposition()
    texts = await asyncio.gather(*(exposed.text(TextFormat.PLAIN) for _ in range(100)))
    assert maker.n == 1
    assert all(text is texts[0] for text in texts)
    maker.now_s = exposition.TEXT_FRESH_S - 0.01
    assert await exposed.text(TextFormat.PLAIN) is texts[0]
    maker.now_s = exposition.TEXT_FRESH_S
    assert await exposed.text(TextFormat.PLAIN) is not texts[0]
    assert maker.n == 2


async def test_texts_that_take_long_are_made_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    exposed = maker.exposition()
    monkeypatch.setattr(exposition, "timed_exposition", lambda totals, form: (b"", 1.0))
    await exposed.text(TextFormat.PLAIN)
    maker.now_s = 1.0 / exposition.MAKING_SHARE - 0.01
    await exposed.text(TextFormat.PLAIN)
    assert maker.n == 1
    maker.now_s = 1.0 / exposition.MAKING_SHARE
    await exposed.text(TextFormat.PLAIN)
    assert maker.n == 2


async def test_a_text_that_fails_is_made_again_and_a_caller_that_leaves_takes_none_with_it() -> None:
    maker = Maker()
    exposed = maker.exposition()
    maker.fails = True
    with pytest.raises(ZeroDivisionError):
        await exposed.text(TextFormat.PLAIN)
    maker.fails = False
    leaves = asyncio.ensure_future(exposed.text(TextFormat.PLAIN))
    stays = asyncio.ensure_future(exposed.text(TextFormat.PLAIN))
    await asyncio.sleep(0)
    leaves.cancel()
    assert b"tokenmux_node_up 1.0" in await stays
    assert maker.n == 2
