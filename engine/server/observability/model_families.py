"""Families about models and tenants: requests, tokens, latencies, weights.

Labels are names of served models and of tenants that the operator has named, never what a stranger sends.
"""

from collections.abc import Callable, Iterator

from tokenmux.core.phases import Residency
from tokenmux.core.started import SwapReason
from tokenmux.messages.reports import ModelStatus
from tokenmux.scheduler.metrics.counters import MODEL_TABLE, SERVICE_TABLE
from tokenmux.scheduler.metrics.histogram import Durations
from tokenmux.server.front.request_counters import RequestEnd
from tokenmux.server.observability.family import Family, MetricKind, Sample, help_of
from tokenmux.server.observability.figures import Figures, ModelFigures

MODEL, TENANT = ("model_name",), ("tenant",)


def _of_models(
    name: str, kind: MetricKind, help: str, read: Callable[[ModelFigures], float | Durations]
) -> Family:
    def samples(figures: Figures) -> Iterator[Sample]:
        return (((model.name,), read(model)) for model in figures.models)

    return Family(name, kind, MODEL, help, samples)


def _now(name: str, help: str, read: Callable[[ModelStatus], float]) -> Family:
    """A gauge of every model on which the node has reported."""

    def samples(figures: Figures) -> Iterator[Sample]:
        return (((m.name,), read(m.status)) for m in figures.models if m.status is not None)

    return Family(name, MetricKind.GAUGE, MODEL, help, samples)


def _service(name: str, counter: str) -> Family:
    """A counter of a model's service."""
    help = help_of(SERVICE_TABLE, counter)
    return _of_models(name, MetricKind.COUNTER, help, lambda model: model.service[counter])


def _weights(name: str, counter: str) -> Family:
    """A counter of a model itself."""
    help = help_of(MODEL_TABLE, counter)
    return _of_models(name, MetricKind.COUNTER, help, lambda model: model.counts[counter])


def _latency(name: str, help: str, read: Callable[[ModelFigures], Durations]) -> Family:
    return _of_models(name, MetricKind.HISTOGRAM, help, read)


def _service_latency(name: str, counter: str) -> Family:
    """A histogram of a model's service."""
    return _latency(name, help_of(SERVICE_TABLE, counter), lambda model: model.service[counter])


def _tenant(name: str, counter: str) -> Family:
    def samples(figures: Figures) -> Iterator[Sample]:
        return (((tenant,), service[counter]) for tenant, service in figures.tenants.items())

    return Family(name, MetricKind.COUNTER, TENANT, help_of(SERVICE_TABLE, counter), samples)


def _ends(figures: Figures) -> Iterator[Sample]:
    for model in figures.models:
        for end in RequestEnd:
            yield (model.name, end.value), model.requests.ends[end]


def _swaps(figures: Figures) -> Iterator[Sample]:
    for model in figures.models:
        for reason in SwapReason:
            yield (model.name, reason.value), model.counts[f"n_swaps_{reason.name.lower()}"]


def _residency(figures: Figures) -> Iterator[Sample]:
    for model in figures.models:
        if model.status is not None:
            for residency in Residency:
                yield (model.name, residency.value), model.status.residency is residency


def _prompt_tokens(model: ModelFigures) -> float:
    return float(model.service["n_prompt_tokens"] + model.service["n_cached_prompt_tokens"])


REQUEST_FAMILIES = (
    _now("num_requests_running", "Requests in the step that runs.", lambda now: now.n_running),
    _now("num_requests_waiting", "Requests that wait for their next step.", lambda now: now.n_queued),
    _now(
        "num_requests_paged_out",
        "Waiting requests whose KV cache is in host memory.",
        lambda now: now.n_paged_out,
    ),
    Family(
        "request_success_total",
        MetricKind.COUNTER,
        (*MODEL, "finished_reason"),
        "Requests that ended, by how. As in vLLM, those that failed are among them.",
        _ends,
    ),
    _service("requests_on_time_total", "n_requests_on_time"),
    _latency(
        "e2e_request_latency_seconds",
        "Time from arrival to the last token, of requests that completed.",
        lambda model: model.requests.whole,
    ),
    _latency(
        "request_queue_time_seconds",
        "Time from arrival to the first step, of requests that completed.",
        lambda model: model.requests.queued,
    ),
    _latency(
        "request_loading_time_seconds",
        "Time that requests waited while their model's weights were on their way, of those that completed.",
        lambda model: model.requests.loading,
    ),
    _service_latency("time_to_first_token_seconds", "ttft"),
    _service_latency("inter_token_latency_seconds", "gaps"),
    _service_latency("request_time_per_output_token_seconds", "tpot"),
)

TOKEN_FAMILIES = (
    _now(
        "num_tokens_overdue",
        "Tokens of live requests that are due and not drawn, at most: a request may end before them.",
        lambda now: now.n_tokens_overdue,
    ),
    _service("prompt_tokens_total", "n_prompt_tokens"),
    _service("generation_tokens_total", "n_tokens"),
    _service("generation_tokens_on_time_total", "n_tokens_on_time"),
    _of_models(
        "prefix_cache_queries_total",
        MetricKind.COUNTER,
        "Tokens of prompts, computed or given by the prefix cache.",
        _prompt_tokens,
    ),
    _service("prefix_cache_hits_total", "n_cached_prompt_tokens"),
    _service("prefix_cache_hit_requests_total", "n_prefix_hits"),
)

WEIGHT_FAMILIES = (
    Family(
        "swaps_total",
        MetricKind.COUNTER,
        (*MODEL, "reason"),
        "Times that a model's weights were brought to a device, by reason.",
        _swaps,
    ),
    _weights("swap_bytes_total", "swap_bytes"),
    _weights("swap_seconds_total", "swap_s"),
    _weights("swap_exposed_seconds_total", "swap_exposed_s"),
    _weights("compute_seconds_total", "compute_s"),
    _service("gpu_seconds_total", "gpu_s"),
    Family(
        "model_residency",
        MetricKind.GAUGE,
        (*MODEL, "residency"),
        "1 for where a model's weights are: the nearest place of all devices.",
        _residency,
    ),
    _now("model_devices", "Devices that hold a model's weights.", lambda now: len(now.resident_on)),
    _of_models("model_pinned", MetricKind.GAUGE, "1 if a model is pinned.", lambda model: model.is_pinned),
    _of_models(
        "model_refused",
        MetricKind.GAUGE,
        "1 if requests for a model are refused: `tokenmux models list` says why.",
        lambda model: model.is_refused,
    ),
)

TENANT_FAMILIES = (
    _tenant("tenant_requests_total", "n_requests"),
    _tenant("tenant_prompt_tokens_total", "n_prompt_tokens"),
    _tenant("tenant_generation_tokens_total", "n_tokens"),
    _tenant("tenant_generation_tokens_on_time_total", "n_tokens_on_time"),
    _tenant("tenant_gpu_seconds_total", "gpu_s"),
)
