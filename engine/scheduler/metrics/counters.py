"""What an instance counts: tokens on time, waiting, swaps, busy channels, device time by tenant. Counted from
effects; everyone may read it.

The running engine and the simulator use the same counters; docs/metrics.md defines each for operators. A
token is on time if it is there by `arrival + TTFT + i * TPOT` (`tokenmux.core.request.Request.deadline_s`);
later pauses by the client do not count against us. Every counter costs a step one addition per row, and
memory is bounded whatever clients send.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
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
from tokenmux.core.event import SUPERSEDED
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Channel, Discard
from tokenmux.core.record import RequestRecord
from tokenmux.core.started import StartedCompaction, SwapReason
from tokenmux.scheduler.metrics.counter_table import (
    Table,
    Unit,
    counted,
    counted_by,
    derived,
    histogram,
    taken_from,
)
from tokenmux.scheduler.metrics.histogram import Histogram, interval


class ArtifactAllowance:
    """The lateness that the Aegaeon artifact counts, for comparison only: it flatters.

    Its README: "the percentage of time where TTFT/TPOT requirements are satisfied over total service time". A
    request has an allowance, at first TTFT; each token adds a TPOT and subtracts its wait. A token that takes
    longer than the allowance is late by the excess, after which the full allowance is restored, so that a
    request that is always late can still score well.
    """

    __slots__ = ("allowance_s", "late_s")

    def __init__(self, allowance_s: float, late_s: float = 0.0) -> None:
        self.allowance_s = allowance_s
        self.late_s = late_s

    def drawn(self, since_s: float, ends_s: tuple[float, ...], tpot_s: float) -> None:
        """Count tokens that came at `ends_s`; the one before, or the request itself, came at `since_s`."""
        self._wait(ends_s[0] - since_s, tpot_s)
        span_s = ends_s[-1] - ends_s[0]
        if span_s <= self.allowance_s:
            self.allowance_s += (len(ends_s) - 1) * tpot_s - span_s
        else:
            for before_s, end_s in pairwise(ends_s):
                self._wait(end_s - before_s, tpot_s)

    def _wait(self, wait_s: float, tpot_s: float) -> None:
        if wait_s > self.allowance_s:
            self.late_s += wait_s - self.allowance_s
        else:
            self.allowance_s -= wait_s
        self.allowance_s += tpot_s


@dataclass(slots=True, eq=False)
class ServiceCounters:
    """How a model, or a tenant, was served: totals since the instance began."""

    n_requests: int = counted(Unit.REQUESTS, "Ended requests.")
    n_requests_on_time: int = counted(Unit.REQUESTS, "Of them, with every token on time.")
    n_requests_failed: int = counted(
        Unit.REQUESTS, "Of them, failed, or not complete when their clients stopped waiting."
    )
    n_prompt_tokens: int = counted(Unit.TOKENS, "Tokens of prompts that were computed.")
    n_prefix_hits: int = counted(Unit.TIMES, "Requests that were given KV of their prompt's beginning.")
    n_cached_prompt_tokens: int = counted(Unit.TOKENS, "Tokens of prompts whose KV others had computed.")
    n_tokens: int = counted(Unit.TOKENS, "Tokens drawn.")
    n_tokens_on_time: int = counted(Unit.TOKENS, "Of them, on time.")
    n_attained: int = 0
    """Requests that ended with at least one token; `attained / n_attained` is the mean of the artifact's
    attainment."""
    attained: float = 0.0
    ttft: Histogram = histogram("First tokens' waits, of requests that have one.")
    tpot: Histogram = histogram("Mean time between tokens of ended requests with two tokens or more.")
    gaps: Histogram = histogram("Time between each token and the next, less the client's own pauses.")
    gpu_s: float = counted(Unit.SECONDS, "Device time: a step's by rows, a swap's by who waited for it.")
    """A step's seconds go to its rows in equal parts (each token that it advances is one row). The exposed
    seconds of a swap go to the requests that waited for the model, in equal parts, or to `POOL` if none did.
    So tenants add up to models, and models to the compute channel's busy seconds plus all exposed swap
    seconds."""

    @derived(Unit.SHARE, "Mean over requests of the time that was not late, as the paper's artifact counts.")
    def artifact_attainment(self) -> float:
        return self.attained / self.n_attained if self.n_attained else 0.0

    def count_prefix(self, n_tokens: int) -> None:
        self.n_prefix_hits += 1
        self.n_cached_prompt_tokens += n_tokens

    def count_end(self, record: RequestRecord) -> None:
        self.n_requests += 1
        self.n_requests_on_time += record.is_on_time
        self.n_requests_failed += record.failed
        attainment = record.artifact_attainment
        if attainment is not None:
            self.n_attained += 1
            self.attained += attainment
        if record.tpot_s is not None:
            self.tpot.add(record.tpot_s)


@dataclass(slots=True, eq=False)
class ModelCounters:
    """Totals of one model since the instance began."""

    service: ServiceCounters = field(default_factory=ServiceCounters)
    swaps: dict[SwapReason, int] = counted_by(
        SwapReason, "n_swaps_{}", Unit.SWAPS, "Times that its weights were brought to the device, by reason."
    )
    swap_bytes: int = counted(Unit.BYTES, "Bytes of weights copied to the device.")
    swap_s: float = counted(Unit.SECONDS, "Time during which its weights were being copied to the device.")
    swap_exposed_s: float = counted(Unit.SECONDS, "The part of `swap_s` in which no step ran.")
    compute_s: float = counted(Unit.SECONDS, "Time of its steps.")
    last_asked_s: float = -inf
    """When a request for it last arrived."""

    @derived(Unit.SWAPS, "Times that its weights were brought to the device.")
    def n_swaps(self) -> int:
        return sum(self.swaps.values())

    n_prompt_tokens = taken_from("service.n_prompt_tokens", Unit.TOKENS, "As in its service.")
    n_tokens = taken_from("service.n_tokens", Unit.TOKENS, "As in its service.")
    n_tokens_on_time = taken_from("service.n_tokens_on_time", Unit.TOKENS, "As in its service.")


MAX_TENANTS = 256
"""Clients name tenants: those beyond this number are counted together, as `OTHERS`."""

OTHERS = "(others)"
POOL = "(pool)"
"""The tenant for work that no request asked for."""

DEDICATED_WINDOW_S = 3600.0
"""With one device per model, a deployment would keep the devices of all models requested within this time."""

DrawnRows = Mapping[tuple[ServiceCounters, float | None], int]
"""Number of rows in a step that drew tokens, by tenant and by the time of their last token."""


@dataclass(slots=True, eq=False)
class Metrics:
    """Counters of one instance."""

    models: dict[ModelId, ModelCounters] = field(default_factory=dict)
    tenants: dict[str, ServiceCounters] = field(default_factory=dict)
    busy_s: dict[Channel, float] = counted_by(
        Channel, "{}_busy_s", Unit.SECONDS, "Time during which the channel was busy."
    )
    copied_bytes: dict[Channel, int] = field(default_factory=lambda: dict.fromkeys(Channel, 0))
    n_steps: int = counted(Unit.STEPS, "Forward passes.")
    n_discards: int = counted(Unit.TIMES, "KV cache given up, to be rebuilt from its tokens.")
    n_superseded: int = 0
    """Copies of weights and fetches that were stopped early for more urgent ones."""
    work_s: float = counted(Unit.SECONDS, "Time during which any model had unfinished requests.")
    model_work_s: float = counted(Unit.SECONDS, "The same time, once for each model with such requests.")
    """What one device per model would have taken."""
    _work_until_s: float = field(default=-inf, init=False)

    def count(self, at_s: float, effects: Effects) -> None:
        """Count what an event or a decision at `at_s` caused."""
        for effect in effects:
            match effect:
                case StepEnded():
                    self._count_step(effect)
                case CopyEnded():
                    self._count_copy(effect)
                case RequestEnded(record):
                    self.of(record.request.model).service.count_end(record)
                    self.tenant(record.request.tenant).count_end(record)
                case RequestEntered(request):
                    self.tenant(request.tenant)
                    self.of(request.model).last_asked_s = at_s
                case ModelLoaded():
                    self._count_swap(effect)
                case PrefixTaken(request, n_tokens):
                    self.of(request.model).service.count_prefix(n_tokens)
                    self.tenant(request.tenant).count_prefix(n_tokens)
                case Discard():
                    self.n_discards += 1
                case _:
                    pass

    def count_work(self, n_models: int, until_s: float) -> None:
        """Count that `n_models` models had unfinished requests since the last call, until `until_s`."""
        if n_models:
            seconds = until_s - self._work_until_s
            self.work_s += seconds
            self.model_work_s += n_models * seconds
        self._work_until_s = until_s

    def of(self, model: ModelId) -> ModelCounters:
        found = self.models.get(model)
        if found is None:
            found = self.models[model] = ModelCounters()
        return found

    def tenant(self, name: str) -> ServiceCounters:
        found = self.tenants.get(name)
        if found is None:
            if len(self.tenants) >= MAX_TENANTS and name != POOL:
                name = OTHERS
            found = self.tenants.setdefault(name, ServiceCounters())
        return found

    def _count_step(self, ended: StepEnded) -> None:
        counters = self.of(ended.started.model.id)
        service, ends_s = counters.service, ended.done.ends_s
        seconds = ended.done.at_s - ended.started.at_s
        row_s = seconds / sum(row.n_tokens for row in ended.rows)
        drawn: dict[tuple[ServiceCounters, float | None], int] = {}
        for name, n_tokens, n_prompt_tokens, draws, n_on_time, since_s, ttft_s in ended.rows:
            tenant = self.tenant(name)
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
        self._count_drawn(service, drawn, ends_s)
        counters.compute_s += seconds
        service.gpu_s += seconds
        self.busy_s[Channel.COMPUTE] += seconds
        self.n_steps += len(ends_s)

    def _count_drawn(self, model: ServiceCounters, rows: DrawnRows, ends_s: tuple[float, ...]) -> None:
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

    def _count_copy(self, ended: CopyEnded) -> None:
        started, error = ended.started, ended.done.error
        self.busy_s[started.channel] += ended.done.at_s - started.at_s
        self.n_superseded += error == SUPERSEDED
        if not error and not isinstance(started, StartedCompaction):
            self.copied_bytes[started.channel] += started.n_bytes

    def _count_swap(self, loaded: ModelLoaded) -> None:
        """The exposed seconds are shared among the requests that waited for the model."""
        started, exposed_s = loaded.started, loaded.exposed_s
        model = self.of(started.model.id)
        model.swaps[started.reason] += 1
        model.swap_bytes += started.n_bytes
        model.swap_s += loaded.seconds
        model.swap_exposed_s += exposed_s
        model.service.gpu_s += exposed_s
        for name in loaded.tenants or (POOL,):
            self.tenant(name).gpu_s += exposed_s / max(1, len(loaded.tenants))

    def models_with_work(self) -> float:
        """Mean number of models with unfinished requests, while there were any: the devices that
        request-level autoscaling would have held.

        GPUs saved against it: this, less the devices of this instance. A request's time here, on a shared
        device, stands for its time on a device of its own, which flatters if the pool is late.
        """
        return self.model_work_s / self.work_s if self.work_s else 0.0

    def n_models_used(self, now_s: float) -> int:
        """Number of models requested within `DEDICATED_WINDOW_S`: the devices that one device per model would
        hold.

        GPUs saved against dedicated devices: this, less the devices of this instance.
        """
        return sum(counters.last_asked_s >= now_s - DEDICATED_WINDOW_S for counters in self.models.values())


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


SERVICE_TABLE = Table(ServiceCounters)
MODEL_TABLE = Table(ModelCounters)
INSTANCE_TABLE = Table(Metrics)
"""The whole table, by aggregate: a service is a model's or a tenant's."""
