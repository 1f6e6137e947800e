"""What a live model asks of its instance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tokenmux.core.cost import StepWork
from tokenmux.core.facts import ModelFacts
from tokenmux.core.plan import Channel
from tokenmux.core.request import RequestId, ServiceLevel
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView, RequestView

FORESIGHT_TTFTS = 3.0
"""The oracle treats a model that lasts longer than this like any other."""


@dataclass(slots=True)
class Demand:
    """Compute and copy-in as shares of a second per second, and bytes."""

    compute: float
    """One decode step per TPOT, of the duration that the model's batch gives it."""
    copy: float
    """All weights once per TTFT."""
    weight_bytes: int
    kv_bytes: int
    kv_copy: float
    """All KV once per TTFT."""


def first_demand(instance: InstanceView, facts: ModelFacts, service: ServiceLevel) -> Demand:
    """What a model asks that begins there with one request of this service level."""
    return Demand(
        instance.cost.step_s(facts, StepWork(decode_rows=1)) / service.tpot_s,
        instance.cost.copy_s(Channel.COPY_IN, facts.n_bytes) / service.ttft_s,
        facts.n_bytes,
        0,
        0.0,
    )


def demand_of(
    instance: InstanceView, model: ModelView, lengths: Mapping[RequestId, int] | None = None
) -> Demand:
    """What the model asks, by the strictest of its requests: steps must come as often as that one needs
    them, and they serve the others too. If `lengths` are known, a model that will soon be done asks for
    less."""
    requests = list(requests_of(model))
    context = sum(r.n_tokens for r in requests)
    strictest = ServiceLevel(
        min(r.request.service.ttft_s for r in requests), min(r.request.service.tpot_s for r in requests)
    )
    service = strictest.beside(instance.service)
    work = StepWork(decode_rows=len(requests), context_tokens=context)
    kv_bytes = context * model.facts.kv.token_bytes
    demand = Demand(
        instance.cost.step_s(model.facts, work) / service.tpot_s,
        instance.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes) / service.ttft_s,
        model.facts.n_bytes,
        kv_bytes,
        instance.cost.copy_s(Channel.COPY_IN, kv_bytes) / service.ttft_s,
    )
    if lengths is not None:
        lasts = max(_lasts(instance, r, lengths[r.request.id]) for r in requests)
        demand.compute *= lasts
        demand.copy *= lasts
        demand.kv_copy *= lasts
    return demand


def requests_of(model: ModelView) -> Iterator[RequestView]:
    """The model's requests that want tokens."""
    for file in (model.waiting, model.decoding, model.away):
        yield from file.values()


def _lasts(instance: InstanceView, request: RequestView, n_output: int) -> float:
    """Share of the oracle's look-ahead that the request will last, if its tokens come when they are due."""
    service = request.request.service
    last_due_s = request.deadline_s + (n_output - request.n_drawn) * service.tpot_s
    return min(1.0, max(0.0, (last_due_s - instance.now_s) / (FORESIGHT_TTFTS * service.ttft_s)))
