"""Counts effects: what a step drew and when, what a copy brought, how a request ended.

Apart from the counters themselves, since it is asked after every event: this can be compiled, the table
cannot (docs/compiled.md).
"""

from collections import Counter
from collections.abc import Mapping
from operator import sub

from tokenmux.core.effects import (
    CopyEnded,
    Effects,
    ModelLoaded,
    PrefixTaken,
    RequestEnded,
    RequestEntered,
    StepEnded,
)
from tokenmux.core.plan import Channel, Discard
from tokenmux.core.started import StartedPageIn, StartedPageOut
from tokenmux.scheduler.metrics.counters import POOL, Metrics, ServiceCounters
from tokenmux.scheduler.metrics.histogram import interval

DrawnRows = Mapping[tuple[ServiceCounters, float | None], int]
"""Number of rows in a step that drew tokens, by tenant and by the time of their last token."""


def count(metrics: Metrics, at_s: float, effects: Effects) -> None:
    """Count what an event or a decision at `at_s` caused."""
    for effect in effects:
        match effect:
            case StepEnded():
                _count_step(metrics, effect)
            case CopyEnded():
                _count_copy(metrics, effect)
            case RequestEnded(record):
                metrics.of(record.request.model).service.count_end(record)
                metrics.tenant(record.request.tenant).count_end(record)
            case RequestEntered(request):
                metrics.tenant(request.tenant)
                metrics.of(request.model).last_asked_s = at_s
            case ModelLoaded():
                _count_swap(metrics, effect)
            case PrefixTaken(request, n_tokens):
                metrics.of(request.model).service.count_prefix(n_tokens)
                metrics.tenant(request.tenant).count_prefix(n_tokens)
            case Discard():
                metrics.n_discards += 1
            case _:
                pass


def _count_step(metrics: Metrics, ended: StepEnded) -> None:
    counters = metrics.of(ended.started.model.id)
    service, ends_s = counters.service, ended.done.ends_s
    seconds = ended.done.at_s - ended.started.at_s
    row_s = seconds / sum(row.n_tokens for row in ended.rows)
    drawn: dict[tuple[ServiceCounters, float | None], int] = {}
    for name, n_tokens, n_prompt_tokens, draws, n_on_time, since_s, ttft_s in ended.rows:
        tenant = metrics.tenant(name)
        tenant.gpu_s += row_s * n_tokens
        if n_prompt_tokens:
            service.n_prompt_tokens += n_prompt_tokens
            tenant.n_prompt_tokens += n_prompt_tokens
        if draws:
            key = (tenant, since_s)
            drawn[key] = drawn.get(key, 0) + 1
            service.n_tokens_on_time += n_on_time
            tenant.n_tokens_on_time += n_on_time
            if ttft_s is not None:
                service.ttft.add(ttft_s)
                tenant.ttft.add(ttft_s)
    _count_drawn(service, drawn, ends_s)
    counters.compute_s += seconds
    service.gpu_s += seconds
    metrics.busy_s[Channel.COMPUTE] += seconds
    metrics.n_steps += len(ends_s)


def _count_drawn(model: ServiceCounters, rows: DrawnRows, ends_s: tuple[float, ...]) -> None:
    """Enter the tokens of a step and the gaps before them."""
    n_ends, inner, span_s = len(ends_s), inner_gaps(ends_s), ends_s[-1] - ends_s[0]
    for (tenant, since_s), n_rows in rows.items():
        first = None if since_s is None else interval(ends_s[0] - since_s)
        for counters in (model, tenant):
            counters.n_tokens += n_rows * n_ends
            gaps = counters.gaps
            if first is not None and since_s is not None:
                gaps.counts[first] += n_rows
                gaps.total_s += n_rows * (ends_s[0] - since_s)
            for place, n in inner:
                gaps.counts[place] += n_rows * n
            gaps.total_s += n_rows * span_s


def _count_copy(metrics: Metrics, ended: CopyEnded) -> None:
    started, done = ended.started, ended.done
    metrics.busy_s[started.channel] += done.at_s - started.at_s
    metrics.n_superseded += done.superseded
    if not done.ok:
        return
    if isinstance(started, StartedPageIn):
        metrics.paged_in_bytes += started.n_bytes
    elif isinstance(started, StartedPageOut):
        metrics.paged_out_bytes += started.n_bytes


def _count_swap(metrics: Metrics, loaded: ModelLoaded) -> None:
    """The exposed seconds are shared among the requests that waited for the model."""
    started, exposed_s = loaded.started, loaded.exposed_s
    model = metrics.of(started.model.id)
    model.swaps[started.reason] += 1
    model.swap_bytes += started.n_bytes
    model.swap_s += loaded.seconds
    model.swap_exposed_s += exposed_s
    model.service.gpu_s += exposed_s
    for name in loaded.tenants or (POOL,):
        metrics.tenant(name).gpu_s += exposed_s / max(1, len(loaded.tenants))


def inner_gaps(ends_s: tuple[float, ...]) -> list[tuple[int, int]]:
    """The gaps between the iterations of a step: intervals of a histogram, and the number of gaps in each.
    Nearly always all are in one."""
    if len(ends_s) < 2:
        return []
    gaps_s = list(map(sub, ends_s[1:], ends_s))
    shortest, longest = interval(min(gaps_s)), interval(max(gaps_s))
    if shortest == longest:
        return [(shortest, len(gaps_s))]
    return list(Counter(map(interval, gaps_s)).items())


def count_on_time(first_deadline_s: float, tpot_s: float, ends_s: tuple[float, ...]) -> int:
    """How many of the tokens drawn at `ends_s` came by `first_deadline_s + i * tpot_s`."""
    if ends_s and ends_s[-1] <= first_deadline_s:
        return len(ends_s)
    return sum(end <= first_deadline_s + i * tpot_s for i, end in enumerate(ends_s))
