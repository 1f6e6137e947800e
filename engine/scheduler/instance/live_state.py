"""The live state of one instance, with the small changes of which every event, plan and completion consists.

Others see it through `tokenmux.scheduler.instance.instance`. `requests`, `operator_wishes`,
`immediate_actions`, `begin` and `complete` change it, and append to `effects` what others have to do, tell or
count as a result.
"""

from collections.abc import Iterable
from math import inf

from tokenmux.core.cost import CostModel
from tokenmux.core.effects import INTERRUPT, Effect, PrefixTaken
from tokenmux.core.errors import IllegalPlan, IntegrityError, InternalError
from tokenmux.core.facts import DeviceFacts, ModelFacts, ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase, Residency
from tokenmux.core.plan import Channel, Chunk
from tokenmux.core.request import RequestId, ServiceLevel
from tokenmux.core.started import Started, StartedActivation, StartedFetch, StartedStep
from tokenmux.scheduler.instance.model_state import ModelState
from tokenmux.scheduler.instance.queue import Queue
from tokenmux.scheduler.instance.request_state import RequestState
from tokenmux.scheduler.memory.ledger import Ledger
from tokenmux.scheduler.metrics.shares import Shares


class LiveState:
    """Requests, models and operations in flight of one instance, with its books."""

    def __init__(self, device: DeviceFacts, ledger: Ledger, cost: CostModel, service: ServiceLevel) -> None:
        self.device = device
        self.ledger = ledger
        self.cost = cost
        self.shares = Shares(service.ttft_s)
        self.now_s = -inf
        self.version = 0
        """Number of changes so far."""
        self.models: dict[ModelId, ModelState] = {}
        self.live_models: dict[ModelId, ModelState] = {}
        self.resident_models: dict[ModelId, ModelState] = {}
        self.asked_models: dict[ModelId, None] = {}
        self.unreadable_models: dict[ModelId, None] = {}
        """Those with a `load_error`."""
        self.requests: dict[RequestId, RequestState] = {}
        self.queue = Queue()
        self.leaving: dict[RequestId, RequestState] = {}
        """Requests that leave once the host has their KV."""
        self.in_flight: dict[Channel, Started] = {}
        self.n_started = 0
        """Number of operations begun so far; the id of the next one."""
        self.interrupted = False
        """True if the repeated step in flight should end after its present iteration."""
        self.resize_bytes: int | None = None
        """The requested size of the arena, while it is being emptied for a resize; otherwise None."""
        self.resize_told = False
        """True if the body has been told that the arena is empty."""
        self.orphans: set[int] = set()
        """Steps and activations in flight whose model was removed: they free its weights when they end."""
        self.compute_s = 0.0
        """Seconds of all steps that have ended."""
        self.effects: list[Effect] = []
        """Effects since the body was last told."""
        self._on_disk_at: tuple[int, int] | None = None
        self._any_on_disk = False

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────

    def add_model(self, facts: ModelFacts) -> None:
        self.models[facts.id] = ModelState(facts, self.ledger, self.shares)
        self._on_disk_at = None

    def forget_model(self, model: ModelId) -> None:
        del self.models[model]
        self._on_disk_at = None
        self.asked_models.pop(model, None)
        self.unreadable_models.pop(model, None)
        self.live_models.pop(model, None)

    def file_asked(self, model: ModelState) -> None:
        """Update `asked_models` after an operator changed a wish for the model."""
        if model.pinned or model.wanted is not None:
            self.asked_models[model.facts.id] = None
        else:
            self.asked_models.pop(model.facts.id, None)

    def file_load_error(self, model: ModelState, error: str) -> None:
        """Note why the model could not be read the last time; empty if it could, or that is not known."""
        model.load_error = error
        if error:
            self.unreadable_models[model.facts.id] = None
        else:
            self.unreadable_models.pop(model.facts.id, None)

    def refile(self, request: RequestState) -> None:
        """File the request under what it needs now, unless it has ended."""
        if request.to_end is None:
            request.model.file(request)

    def take_prefix(self, request: RequestState) -> bool:
        """Give the request the KV of its prompt that others have computed. False if there is none."""
        if request.in_step or request.in_copy or request.to_end:
            return False
        asked = request.request
        n_tokens = self.ledger.sharing.take(request.kv, asked.n_prompt, self.device.cell_tokens)
        if n_tokens:
            self.effects.append(PrefixTaken(asked, n_tokens))
        return n_tokens > 0

    def take_prefixes(self, model: ModelState) -> None:
        """Give the model's waiting requests what others have computed of their prompts."""
        for request in list(model.waiting.values()):
            if request.request.prefix is not None and self.take_prefix(request):
                self.refile(request)

    def tell(self, request: RequestState, phase: RequestPhase) -> None:
        """Record the request's phase for its client, if it has changed."""
        if request.told_phase is not phase:
            request.told_phase = phase
            if phase is RequestPhase.RUNNING:
                self.queue.leave(request)
            position = request.told_position if phase is RequestPhase.QUEUED else 0
            self.effects.append(PhaseChanged(request.id, phase, position))

    def interrupt(self) -> None:
        """Make the repeated step in flight end after its present iteration."""
        self.interrupted = True
        self.effects.append(INTERRUPT)

    def pop(self, channel: Channel, operation: int) -> Started:
        """Remove the operation from those in flight."""
        started = self.in_flight.pop(channel, None)
        if started is None or started.id != operation:
            raise InternalError(
                f"operation {operation} completed on {channel.name}, where {started} was in flight"
            )
        return started

    def release_cache(self) -> None:
        """Release the images in the host cache that operations in flight copy or read."""
        for started in self.in_flight.values():
            if isinstance(started, StartedActivation):
                for image in started.images:
                    self.ledger.cache.unhold(image.id)
            elif isinstance(started, StartedFetch):
                self.ledger.cache.end_fetch(started.images, ok=False)

    # ── questions
    # ────────────────────────────────────────────────────────────────────────────────────────────

    def model(self, model: ModelId) -> ModelState:
        """The model of a plan. Raises IllegalPlan if there is none."""
        if model not in self.models:
            raise IllegalPlan(f"there is no model {model}")
        return self.models[model]

    def request(self, request: RequestId) -> RequestState:
        """The request of a plan. Raises IllegalPlan if there is none."""
        if request not in self.requests:
            raise IllegalPlan(f"there is no request {request}")
        return self.requests[request]

    @property
    def any_on_disk(self) -> bool:
        versions = (self.ledger.version, self.ledger.cache.version)
        if versions != self._on_disk_at:
            self._on_disk_at = versions
            self._any_on_disk = any(m.residency is Residency.DISK for m in self.models.values())
        return self._any_on_disk

    def can_run(self, chunks: Iterable[Chunk], repeat: int = 1) -> bool:
        return self.ledger.can_grow(
            (self.requests[chunk.request].kv, chunk.start + chunk.n_tokens + repeat - 1) for chunk in chunks
        )

    def fixed_models(self) -> list[ModelFacts]:
        """Models whose weights must not move: a step or a copy in flight addresses them."""
        fixed = [model.facts for model in self.models.values() if model.stage is Residency.LOADING]
        step = self.in_flight.get(Channel.COMPUTE)
        return [*fixed, step.model] if isinstance(step, StartedStep) else fixed

    def fixed_kv(self) -> list[RequestId]:
        """Requests whose KV must not move: an operation in flight addresses it."""
        return [request.id for request in self.requests.values() if request.in_step or request.in_copy]

    def compute_until_now_s(self) -> float:
        """Seconds of steps until now, including the one in flight."""
        step = self.in_flight.get(Channel.COMPUTE)
        return self.compute_s + (self.now_s - step.at_s if step else 0.0)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless state and ledger agree to the byte."""
        self.ledger.check_integrity()
        if self.ledger.kv.keys() != self.requests.keys():
            raise IntegrityError("instance: requests and KV tables differ")
        if self.leaving.keys() - self.requests.keys():
            raise IntegrityError("instance: a request that has left is about to leave")
        filed = [request.id for model in self.models.values() for request in model.requests()]
        leaving = [request.id for request in self.requests.values() if request.to_end]
        if sorted([*filed, *leaving]) != sorted(self.requests):
            raise IntegrityError("instance: a live request is filed nowhere, or twice")
