"""Counters never fall while the server runs, whatever happens to its nodes and models."""

import random

import pytest
from msgspec.structs import replace

from tests.server.observability.exposed import Samples, families_of, totals_of
from tests.server.sample_reports import device_status, node_status
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.plan import Channel
from tokenmux.messages.reports import NodeStatus, NodeUse
from tokenmux.scheduler.metrics.counters import (
    INSTANCE_TABLE,
    MODEL_TABLE,
    SERVICE_TABLE,
    Metrics,
    ModelCounters,
    ServiceCounters,
)
from tokenmux.server.front.node_totals import NodeTotals

MODELS = ("a", "b", "c")
TENANTS = ("team", "bank", "stranger", "another")


class Node:
    """Counts at random, from zero."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._devices = {InstanceId(i): Metrics() for i in range(2)}
        self._models = {ModelId(name): ModelCounters() for name in MODELS}
        self._tenants = {name: ServiceCounters() for name in TENANTS}
        self._work_s = 0.0

    def count(self) -> None:
        rng = self._rng
        self._work_s += rng.random()
        for device in self._devices.values():
            device.busy_s[rng.choice(list(Channel))] += rng.random()
            device.n_steps += rng.randrange(3)
            device.paged_in_bytes += rng.randrange(100)
        for model in self._models.values():
            model.swap_bytes += rng.randrange(100)
            self._serve(model.service)
        for tenant in self._tenants.values():
            self._serve(tenant)

    def _serve(self, service: ServiceCounters) -> None:
        service.n_tokens += self._rng.randrange(5)
        service.gpu_s += self._rng.random()
        if self._rng.random() < 0.5:
            service.ttft.add(self._rng.expovariate(1.0))

    def reports(self, registered: set[str]) -> tuple[NodeStatus, NodeUse]:
        status = node_status(*sorted(registered))
        devices = tuple(
            device_status(instance=index, n_deaths=0, counts=INSTANCE_TABLE.row(metrics))
            for index, metrics in self._devices.items()
            if self._rng.random() < 0.9  # or it was removed
        )
        models = tuple(
            replace(model, counts=MODEL_TABLE.row(self._models[model.model])) for model in status.models
        )
        work = {"work_s": self._work_s, "model_work_s": 2 * self._work_s}
        use = NodeUse(
            1.0,
            tuple((name, SERVICE_TABLE.row(model.service)) for name, model in self._models.items()),
            tuple((name, SERVICE_TABLE.row(tenant)) for name, tenant in self._tenants.items()),
        )
        return replace(status, devices=devices, models=models, **work), use


def counters_of(nodes: NodeTotals, registered: set[str], status: NodeStatus | None) -> Samples:
    totals = totals_of(nodes, *sorted(registered), status=status)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families_of(totals)
        if family.type in ("counter", "histogram") and family.name.startswith("tokenmux")
        for sample in family.samples
    }


@pytest.mark.parametrize("seed", range(3))
def test_counters_never_fall(seed: int) -> None:
    rng = random.Random(seed)
    nodes, node, registered = NodeTotals(["team", "bank"]), Node(rng), set(MODELS)
    highest: dict[object, float] = {}
    for _ in range(60):
        node.count()
        status: NodeStatus | None = None
        match rng.randrange(6):
            case 0:
                nodes.node_broke()
                node = Node(rng)
            case 1:
                registered ^= {rng.choice(MODELS)}
            case _:
                status, use = node.reports(registered)
                nodes.take(status)
                nodes.take(use)
        for series, value in counters_of(nodes, registered, status).items():
            assert value >= highest.get(series, 0.0) - 1e-9, series
            highest[series] = value
    assert len(highest) > 200


def test_sums_are_over_all_nodes() -> None:
    nodes = NodeTotals()
    for n in (3, 4):
        counters = ServiceCounters(n_tokens=n)
        counters.ttft.add(0.5, n)
        nodes.take(NodeUse(1.0, ((ModelId("a"), SERVICE_TABLE.row(counters)),), ()))
        nodes.node_broke()
    samples = counters_of(nodes, {"a"}, None)
    assert samples["tokenmux_generation_tokens_total", ("a",)] == 7
    assert samples["tokenmux_time_to_first_token_seconds_count", ("a",)] == 7
    assert samples["tokenmux_time_to_first_token_seconds_sum", ("a",)] == 3.5
