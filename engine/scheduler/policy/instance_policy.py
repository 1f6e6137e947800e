"""What a policy may read and what it must answer: the seam between decisions and everything else.

The views are Protocols over the instance's own live state, kept up incrementally and never copied. A policy
reads them and answers with values of `tokenmux.core.plan`. It changes nothing but its own state, and that
only in `on_event`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol, runtime_checkable

from tokenmux.core.cost import CostModel
from tokenmux.core.event import Arrived, Event
from tokenmux.core.facts import DeviceFacts, ImageId, ModelFacts, ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Chunk, Fetch, Operation, Plan, Step
from tokenmux.core.prefix import KnownPrefix, PrefixKey
from tokenmux.core.request import Request, RequestId, ServiceLevel


class RequestView(Protocol):
    """One live request on the instance."""

    @property
    def request(self) -> Request: ...
    @property
    def n_tokens(self) -> int:
        """Number of tokens that exist: the prompt and those drawn."""
        ...

    @property
    def n_drawn(self) -> int: ...
    @property
    def n_computed(self) -> int:
        """Number of tokens whose KV exists, on the device or the host."""
        ...

    @property
    def deadline_s(self) -> float:
        """When the next token is due."""
        ...

    @property
    def due_s(self) -> float:
        """The deadline by which it is ordered among others: its weight moves it ahead, it is deferred while
        it is late by more than a little, and its lateness counts less while its tenant has had more than its
        share."""
        ...

    @property
    def is_deferred(self) -> bool:
        """True if it can no longer be on time, and is ordered behind what can be."""
        ...

    @property
    def is_long(self) -> bool:
        """True if its prompt alone takes longer to compute than it may be late."""
        ...

    @property
    def next_cell(self) -> PrefixKey | None:
        """The key of the cell of its prompt that it computes next, if requests may share that."""
        ...

    @property
    def in_step(self) -> bool: ...
    @property
    def in_copy(self) -> bool: ...
    @property
    def is_paused(self) -> bool: ...
    @property
    def device_bytes(self) -> int:
        """KV bytes it holds on the device."""
        ...

    @property
    def is_clean(self) -> bool:
        """True if the host has all its KV."""
        ...


class ModelView(Protocol):
    """One model of the catalogue with its live requests, filed by what they need next."""

    @property
    def facts(self) -> ModelFacts: ...
    @property
    def residency(self) -> Residency: ...
    @property
    def is_moving(self) -> bool:
        """True if a compaction is moving its weights: no step may read them."""
        ...

    @property
    def pinned(self) -> bool: ...
    @property
    def wanted(self) -> bool | None:
        """True if an operator asked to load it, False to unload it, None if neither."""
        ...

    @property
    def last_used_s(self) -> float: ...
    @property
    def stepped_since_load(self) -> bool: ...
    @property
    def warm_until_s(self) -> float:
        """The time until which its next request is expected, one that will be due soon after it arrives."""
        ...

    @property
    def waiting(self) -> Mapping[RequestId, RequestView]:
        """Requests that need prefill (or a rebuild); all KV they have is on the device."""
        ...

    @property
    def decoding(self) -> Mapping[RequestId, RequestView]:
        """Requests that need one decode row at a time; all their KV is on the device."""
        ...

    @property
    def away(self) -> Mapping[RequestId, RequestView]:
        """Requests some of whose KV is only on the host."""
        ...

    @property
    def paused(self) -> Mapping[RequestId, RequestView]: ...
    @property
    def n_live(self) -> int:
        """Number of requests that want tokens: all but the paused ones."""
        ...

    @property
    def due_s(self) -> float:
        """The earliest `due_s` of the requests that want tokens; infinity if there are none."""
        ...

    @property
    def runnable_due_s(self) -> float:
        """The same for requests that a step could advance now (waiting and decoding)."""
        ...


class Fit(Enum):
    """How a model's weights find room, if at all."""

    NOW = "now"
    AFTER_COMPACTION = "after compaction"
    NO = "no"


class InstanceView(Protocol):
    """One instance at one moment."""

    @property
    def now_s(self) -> float: ...
    @property
    def version(self) -> int:
        """Changes whenever anything changes on this instance. Time does not count, nor the host's memory,
        which others share."""
        ...

    @property
    def device(self) -> DeviceFacts: ...
    @property
    def cost(self) -> CostModel: ...
    @property
    def service(self) -> ServiceLevel:
        """The pool's own service level. It bounds what a single request asks for, wherever that affects
        others."""
        ...

    @property
    def models(self) -> Mapping[ModelId, ModelView]: ...
    @property
    def live_models(self) -> Mapping[ModelId, ModelView]:
        """Models with requests, including paused ones."""
        ...

    @property
    def resident_models(self) -> Mapping[ModelId, ModelView]: ...
    @property
    def any_on_disk(self) -> bool:
        """True if some model's weights are neither on the device, nor in host memory, nor on their way
        there."""
        ...

    @property
    def asked_models(self) -> Collection[ModelId]:
        """Models that an operator pinned, or wants loaded or unloaded."""
        ...

    @property
    def requests(self) -> Mapping[RequestId, RequestView]: ...
    def known_prefix(self, request: Request) -> KnownPrefix:
        """What the request would be given here of its prompt's KV, if it came now."""
        ...

    def in_flight(self, channel: Channel) -> Operation | None: ...
    @property
    def arena_free_bytes(self) -> int: ...
    def fit(self, model: ModelId, evicted: Iterable[ModelId] = ()) -> Fit:
        """How the model's weights would find room if `evicted` were evicted first."""
        ...

    def can_compact(self, n_bytes: int) -> bool:
        """True if moving things inside the arena would make `n_bytes` contiguous that are not so now."""
        ...

    def can_run(self, chunks: Iterable[Chunk], repeat: int = 1) -> bool:
        """True if the device has room for the KV of a step over these chunks."""
        ...

    def can_page_in(self, request: RequestId) -> bool:
        """True if there is room to page the request in, and then still for the next token of the most urgent
        request of its model that could step now: else both would be dropped again, for ever."""
        ...

    def can_resume(self, request: RequestId) -> bool:
        """True if there is room to page the request in, and for the KV of its next chunk as well."""
        ...

    def can_page_out(self, request: RequestId) -> bool: ...
    def can_fetch(self, model: ModelId) -> bool:
        """True if the host cache has room for the model, also beside what is due before it."""
        ...

    def fetch_would_drop(self, model: ModelId) -> Sequence[ImageId]:
        """The images that fetching the model would drop from the host cache."""
        ...


@runtime_checkable
class MakesWay(Protocol):
    """A policy that gives up a load in flight for a more urgent one. Other policies let every load finish."""

    def makes_way(
        self, operation: Activate | Fetch, since_s: float, arrived: Arrived, view: "InstanceView"
    ) -> bool:
        """True to stop the load, begun at `since_s`, at its next chunk for the request that arrived.

        Once its model has given way, this is not asked again until that model has been loaded.
        """
        ...


@runtime_checkable
class LoadsInOrder(Protocol):
    """A policy that can say what it will load next, so that other instances of the host leave that in host
    memory, or leave room for it. It must load it in the end, whatever others do."""

    def next_to_load(self, view: "InstanceView") -> "ModelView | None": ...


class InstancePolicy(Protocol):
    """Decisions for one instance."""

    @property
    def name(self) -> str: ...

    def on_event(self, event: Event, view: InstanceView) -> None:
        """Called after the view reflects the event. The only place where a policy may change its own
        state."""
        ...

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        """What this free channel does next."""
        ...

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        """True to end a repeated step in flight after its present iteration because of this event."""
        ...
