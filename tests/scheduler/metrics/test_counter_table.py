"""The table of counters is whole: what is declared is in the API and in the client's values."""

from dataclasses import dataclass, fields
from typing import Any

import pytest

from tokenmux.client import InstanceStatus, Model, Service
from tokenmux.core.plan import Channel
from tokenmux.core.started import SwapReason
from tokenmux.scheduler.metrics.counter_table import Table, Unit, counted, counted_by, derived, histogram
from tokenmux.scheduler.metrics.counters import (
    INSTANCE_TABLE,
    MODEL_TABLE,
    SERVICE_TABLE,
    Metrics,
    ModelCounters,
    ServiceCounters,
)
from tokenmux.scheduler.metrics.histogram import BOUNDS_S, Durations, Histogram
from tokenmux.v1 import models_pb2, pool_pb2

AGGREGATES = pytest.mark.parametrize(
    ("table", "message", "value"),
    [
        (SERVICE_TABLE, models_pb2.ServiceTotals, Service),
        (MODEL_TABLE, models_pb2.Model, Model),
        (INSTANCE_TABLE, pool_pb2.Instance, InstanceStatus),
    ],
    ids=["service", "model", "instance"],
)
HISTOGRAMS = {"ttft", "tpot", "gaps"}


@AGGREGATES
def test_every_counter_is_in_the_api_and_in_the_client(table: Table, message: Any, value: Any) -> None:
    places = {
        "a field of the .proto file": {field.name for field in message.DESCRIPTOR.fields},
        "client/operator_values.py": {field.name for field in fields(value)},
    }
    missing = {place: [name for name in table.names if name not in has] for place, has in places.items()}
    assert not any(missing.values()), f"missing: {missing}"


@AGGREGATES
def test_every_counter_says_what_it_counts(table: Table, message: Any, value: Any) -> None:
    assert len(set(table.names)) == len(table.names) > 7
    for counter in table.counters:
        assert counter.help.endswith("."), counter.name
        seconds = counter.name.endswith("_s") or counter.name in HISTOGRAMS
        assert seconds == (counter.unit is Unit.SECONDS), counter.name
        assert counter.name.endswith("_bytes") == (counter.unit is Unit.BYTES), counter.name


def test_a_row_is_what_the_counters_hold_at_that_moment() -> None:
    own = ServiceCounters(n_tokens=7, attained=1.5, n_attained=2)
    own.gaps.add(0.3)
    row = SERVICE_TABLE.row(own)
    own.n_tokens = 8
    own.gaps.add(0.3)
    shown = SERVICE_TABLE.named(row)
    assert (shown["n_tokens"], shown["artifact_attainment"]) == (7, 0.75)
    assert sum(shown["gaps"].counts) == 1
    assert len(shown["gaps"].counts) == len(BOUNDS_S) + 1


def test_counters_by_kind_have_a_name_each() -> None:
    counters = ModelCounters()
    counters.swaps[SwapReason.AGAIN] += 3
    shown = MODEL_TABLE.named(MODEL_TABLE.row(counters))
    assert (shown["n_swaps"], shown["n_swaps_again"], shown["n_swaps_first"]) == (3, 3, 0)
    metrics = Metrics()
    metrics.busy_s[Channel.COPY_OUT] += 0.5
    assert INSTANCE_TABLE.named(INSTANCE_TABLE.row(metrics))["copy_out_busy_s"] == 0.5


def test_a_declaration_is_all_that_a_counter_needs() -> None:
    @dataclass
    class Counts:
        n_spins: int = counted(Unit.TIMES, "Spins.")
        hidden: int = 0
        by_channel: dict[Channel, int] = counted_by(Channel, "n_{}", Unit.TIMES, "Operations.")
        waits: Histogram = histogram("Waits.")

        @derived(Unit.SHARE, "Half of the spins.")
        def half(self) -> float:
            return self.n_spins / 2

    table = Table(Counts)
    assert table.names == ("n_spins", "half", "n_copy_in", "n_copy_out", "n_fetch", "n_compute", "waits")
    counts = Counts(n_spins=3)
    counts.by_channel[Channel.FETCH] = 9
    assert table.row(counts) == (3, 1.5, 0, 0, 9, 0, Durations((0,) * (len(BOUNDS_S) + 1), 0.0))
