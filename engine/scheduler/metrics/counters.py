"""What an instance counts: tokens on time, waiting, swaps, busy channels, device time by tenant. Counted from
effects; everyone may read it.

The running engine and the simulator use the same counters; docs/metrics.md defines each for operators. A
token is on time if it is there by `arrival + TTFT + i * TPOT` (`tokenmux.core.request.Request.deadline_s`);
later pauses by the client do not count against us. Every counter costs a step one addition per row, and
memory is bounded whatever clients send.
"""

from dataclasses import dataclass, field
from math import inf

from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Channel
from tokenmux.core.record import RequestRecord
from tokenmux.core.started import SwapReason
from tokenmux.scheduler.metrics.counter_table import (
    Table,
    Unit,
    counted,
    counted_by,
    derived,
    histogram,
    taken_from,
)
from tokenmux.scheduler.metrics.histogram import Histogram


@dataclass(slots=True, eq=False)
class ServiceCounters:
    """How a model, or a tenant, was served: totals since the instance began."""

    n_requests: int = counted(Unit.REQUESTS, "Ended requests.")
    n_requests_on_time: int = counted(Unit.REQUESTS, "Ended requests with every token on time.")
    n_requests_failed: int = counted(
        Unit.REQUESTS, "Ended requests that failed, or were not complete when their clients stopped waiting."
    )
    n_prompt_tokens: int = counted(Unit.TOKENS, "Tokens of prompts that were computed.")
    n_prefix_hits: int = counted(Unit.TIMES, "Requests that were given KV of their prompt's beginning.")
    n_cached_prompt_tokens: int = counted(Unit.TOKENS, "Tokens of prompts whose KV others had computed.")
    n_tokens: int = counted(Unit.TOKENS, "Tokens drawn.")
    n_tokens_on_time: int = counted(Unit.TOKENS, "Tokens drawn that were on time.")
    n_attained: int = 0
    """Requests that ended with at least one token; `attained / n_attained` is the mean of the artifact's
    attainment."""
    attained: float = 0.0
    ttft: Histogram = histogram("Time from arrival to the first token.")
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
    swap_bytes: int = counted(Unit.BYTES, "Bytes of a model's weights copied to devices.")
    swap_s: float = counted(Unit.SECONDS, "Time during which a model's weights were copied to a device.")
    swap_exposed_s: float = counted(Unit.SECONDS, "Time of copying a model's weights in which no step ran.")
    compute_s: float = counted(Unit.SECONDS, "Time of a model's steps.")
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


@dataclass(slots=True, eq=False)
class Metrics:
    """Counters of one instance."""

    models: dict[ModelId, ModelCounters] = field(default_factory=dict)
    tenants: dict[str, ServiceCounters] = field(default_factory=dict)
    busy_s: dict[Channel, float] = counted_by(
        Channel, "{}_busy_s", Unit.SECONDS, "Time during which the channel was busy."
    )
    n_steps: int = counted(Unit.STEPS, "Forward passes.")
    n_discards: int = counted(Unit.TIMES, "Times that KV cache was given up, to be rebuilt from its tokens.")
    paged_in_bytes: int = counted(Unit.BYTES, "Bytes of KV cache copied from host memory to the device.")
    paged_out_bytes: int = counted(Unit.BYTES, "Bytes of KV cache copied from the device to host memory.")
    n_superseded: int = 0
    """Copies of weights and fetches that were stopped early for more urgent ones."""
    work_s: float = counted(Unit.SECONDS, "Time during which any model had unfinished requests.")
    model_work_s: float = counted(
        Unit.SECONDS, "Time during which models had unfinished requests, once for each."
    )
    """What one device per model would have taken."""
    _work_until_s: float = field(default=-inf, init=False)

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

    def n_models_used(self, now_s: float) -> int:
        """Number of models requested within `DEDICATED_WINDOW_S`: the devices that one device per model would
        hold.

        GPUs saved against dedicated devices: this, less the devices of this instance.
        """
        return sum(counters.last_asked_s >= now_s - DEDICATED_WINDOW_S for counters in self.models.values())


SERVICE_TABLE = Table(ServiceCounters)
MODEL_TABLE = Table(ModelCounters)
INSTANCE_TABLE = Table(Metrics)
"""The whole table, by aggregate: a service is a model's or a tenant's."""
