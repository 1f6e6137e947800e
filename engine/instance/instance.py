"""The state machine of one instance: events in, decisions out; synchronous, and the same for the engine and the simulator.

    body ── apply(event) ──▶ state, ledger, metrics ──▶ policy.on_event
    body ◀── decide(now) ◀── validated plans ◀───────── policy.plan(channel) for every free channel

A body (the runtime or the simulator) carries out what `decide` starts and says when it completed. The instance never waits,
reads no clock and touches no device; what a policy plans is checked against the ledger and refused loudly if illegal.
"""

from collections.abc import Callable, Iterable
from math import inf

from tokenmux.engine.core.cost import CostModel, StepWork
from tokenmux.engine.core.errors import IllegalPlan, IntegrityError, InternalError, InUse
from tokenmux.engine.core.event import (
    SUPERSEDED,
    Arrived,
    Cancelled,
    CopyDone,
    Event,
    ModelAdded,
    ModelRemoved,
    ModelWanted,
    Paused,
    Resumed,
    StepDone,
    Withdrawn,
)
from tokenmux.engine.core.facts import DeviceFacts, ModelFacts, ModelId
from tokenmux.engine.core.message import RequestPhase, Residency
from tokenmux.engine.core.message import RequestState as PhaseMessage
from tokenmux.engine.core.plan import (
    Activate,
    AtOnce,
    Channel,
    Chunk,
    Compact,
    Discard,
    Drop,
    Evict,
    Fetch,
    Operation,
    PageIn,
    PageOut,
    Step,
)
from tokenmux.engine.core.request import FinishReason, RequestId
from tokenmux.engine.instance import validate
from tokenmux.engine.instance.capacity import check_pins
from tokenmux.engine.instance.metrics import (
    Metrics,
    RequestRecord,
    ServiceCounters,
    SwapReason,
    count_on_time,
)
from tokenmux.engine.instance.shares import Shares
from tokenmux.engine.instance.started import Started
from tokenmux.engine.instance.state import ModelState, RequestState
from tokenmux.engine.memory.arena import aligned
from tokenmux.engine.memory.host_cache import HostCache
from tokenmux.engine.memory.ledger import Ledger, Transfer
from tokenmux.engine.policy.interface import Fit, InstancePolicy


class Instance:
    """One execution unit's brain. It satisfies `engine.policy.interface.InstanceView`.

    `decision_observers` are told of everything that the policy decided, with its time: the decision log. `completion_observers` are told
    of every operation that ended, and how.
    """

    def __init__(
        self,
        device: DeviceFacts,
        cache: HostCache,
        policy: InstancePolicy,
        cost: CostModel,
        metrics: Metrics | None = None,
        on_decision: Callable[[float, Operation | AtOnce], None] | None = None,
    ) -> None:
        self.device = device
        self.cost = cost
        self.policy = policy
        self.ledger = Ledger(device, cache)
        self.shares = Shares()
        self.metrics = metrics or Metrics()
        self.now_s = -inf
        self.models: dict[ModelId, ModelState] = {}
        self.live_models: dict[ModelId, ModelState] = {}
        self.resident_models: dict[ModelId, ModelState] = {}
        self.asked_models: dict[ModelId, None] = {}
        self.requests: dict[RequestId, RequestState] = {}
        self.interrupted = False
        """Whether the repeated step in flight should end after its present iteration."""
        self.decision_observers = [on_decision] if on_decision else []
        self.completion_observers: list[Callable[[Started, StepDone | CopyDone], None]] = []
        self._in_flight: dict[Channel, Started] = {}
        self._next_operation = 0
        self._orphans: set[int] = set()
        """Steps and activations in flight whose model was removed: they give its weights back when they end."""
        self._ended: list[tuple[RequestRecord, str]] = []
        self._withdrawn: list[Arrived] = []
        self._phases: list[PhaseMessage] = []
        self._awaited: set[int] = set()
        """Activations and fetches in flight that somebody waits for, or did."""
        self._superseded: list[int] = []
        self._swap_compute_s = 0.0
        self._swap_reason = SwapReason.FIRST
        self._work_until_s = -inf
        self._paging_computed: dict[tuple[Channel, RequestId], int] = {}
        self._on_disk_at: tuple[int, int] | None = None
        self._any_on_disk = False

    # ── what a policy asks ───────────────────────────────────────────────────────────────────────────────────

    def in_flight(self, channel: Channel) -> Operation | None:
        started = self._in_flight.get(channel)
        return started.operation if started else None

    @property
    def arena_free_bytes(self) -> int:
        return self.ledger.arena.free_bytes

    @property
    def any_on_disk(self) -> bool:
        versions = (self.ledger.version, self.ledger.cache.version)
        if versions != self._on_disk_at:
            self._on_disk_at = versions
            self._any_on_disk = any(m.residency is Residency.DISK for m in self.models.values())
        return self._any_on_disk

    def fit(self, model: ModelId, evicted: Iterable[ModelId] = ()) -> Fit:
        facts = self.models[model].facts
        leaving = [self.models[other].facts for other in evicted]
        absent = self.ledger.absent_images(facts)
        images = self.ledger.images_to_place(facts, leaving)
        lost = (image for image in images if image not in absent)
        if self.ledger.arena.frozen or not all(self.ledger.cache.has(image.id) for image in lost):
            return Fit.NO
        n_bytes = sum(aligned(image.n_bytes) for image in images)
        if self.ledger.hole_without(leaving) >= n_bytes:
            return Fit.NOW
        if images == absent and self.ledger.can_place(facts):
            return Fit.NOW
        if self.ledger.plan_compaction(n_bytes, self._fixed_models(), leaving, self._fixed_kv()) is None:
            return Fit.NO
        return Fit.AFTER_COMPACTION

    def can_compact(self, n_bytes: int) -> bool:
        if self.ledger.arena.frozen or n_bytes <= 0:
            return False
        return bool(self.ledger.plan_compaction(n_bytes, self._fixed_models(), (), self._fixed_kv()))

    def can_run(self, chunks: Iterable[Chunk], repeat: int = 1) -> bool:
        return self.ledger.can_grow(
            (self.requests[chunk.request].kv, chunk.start + chunk.n_tokens + repeat - 1) for chunk in chunks
        )

    def can_page_in(self, request: RequestId) -> bool:
        return self.ledger.can_page_in(self.requests[request].kv)

    def can_resume(self, request: RequestId) -> bool:
        state = self.requests[request]
        end = min(state.n_tokens, state.n_computed + self.device.prefill_chunk_tokens)
        n_blocks = state.kv.n_missing + state.kv.blocks_to_grow(end)
        return self.ledger.blocks.can_allocate(state.kv.shape.block_bytes, n_blocks)

    def can_page_out(self, request: RequestId) -> bool:
        return self.ledger.can_page_out(self.requests[request].kv)

    def can_fetch(self, model: ModelId) -> bool:
        state = self.models[model]
        if self.now_s < state.fetch_after_s and not state.n_live:
            return False
        return self.ledger.cache.can_fetch(state.facts.images)

    def fetch_would_drop(self, model: ModelId) -> bool:
        cache = self.ledger.cache
        absent = (image for image in self.models[model].facts.images if not cache.has(image.id))
        return cache.used_bytes + sum(image.n_bytes for image in absent) > cache.capacity

    # ── what a body calls ────────────────────────────────────────────────────────────────────────────────────

    def apply(self, event: Event) -> None:
        """Enter an event into the state and tell the policy."""
        self.now_s = event.at_s
        self.count_work()
        match event:
            case StepDone():
                self._end_step(event)
            case CopyDone():
                self._end_copy(event)
            case Arrived():
                self._arrive(event)
            case Withdrawn(_, request_id):
                if request_id in self.requests:
                    self._end(self.requests[request_id], None)
            case Cancelled(_, request_id, reason):
                if request_id in self.requests:
                    self._end(self.requests[request_id], reason)
            case Paused(at_s, request_id):
                self._pause(request_id, at_s)
            case Resumed(at_s, request_id):
                self._resume(request_id, at_s)
            case ModelAdded(_, facts):
                self.models[facts.id] = ModelState(facts, self.ledger, self.shares)
                self._on_disk_at = None
            case ModelRemoved(_, model_id):
                self._remove(self.models[model_id])
            case ModelWanted(_, model_id, wanted, pinned):
                self._want(self.models[model_id], wanted, pinned)
        self._find_superseded()
        self.policy.on_event(event, self)
        step = self.in_flight(Channel.COMPUTE)
        if isinstance(step, Step) and step.repeat > 1 and not self.interrupted:
            self.interrupted = self.policy.interrupts(step, event, self)

    def decide(self, now_s: float) -> list[Started]:
        """Ask the policy what every free channel does next; returns what has now begun.

        A plan that only makes room (something at once, no operation) has all channels asked again.
        """
        self.now_s = self.shares.now_s = now_s
        started: list[Started] = []
        made_room = True
        while made_room:
            made_room = False
            for channel in Channel:
                if channel in self._in_flight:
                    continue
                plan = self.policy.plan(channel, self)
                for action in plan.at_once:
                    self._note(action)
                    self._do_at_once(action)
                if plan.operation is not None:
                    self._note(plan.operation)
                    started.append(self._start(channel, plan.operation))
                elif plan.at_once:
                    made_room = True
        return started

    def count_work(self) -> None:
        """Bring the counters of models with work up to now."""
        if self._work_until_s > -inf:
            self.metrics.count_work(len(self.live_models), self.now_s - self._work_until_s)
        self._work_until_s = self.now_s

    def take_ended(self) -> list[tuple[RequestRecord, str]]:
        """Requests that ended since the last call, each with a detail for its client."""
        ended, self._ended = self._ended, []
        return ended

    def take_withdrawn(self) -> list[Arrived]:
        """Withdrawn requests that have left since the last call, each as the arrival that it is for its next instance."""
        withdrawn, self._withdrawn = self._withdrawn, []
        return withdrawn

    def take_superseded(self) -> list[int]:
        """Operations in flight that should end at their next chunk, as `CopyDone` with the error `SUPERSEDED`; each is told once."""
        superseded, self._superseded = self._superseded, []
        return superseded

    def take_phases(self) -> list[PhaseMessage]:
        """Changes of requests' phases since the last call."""
        phases, self._phases = self._phases, []
        return phases

    def check_removable(self, model_id: ModelId) -> None:
        """Raise InUse while an operation in flight touches the model."""
        model = self.models[model_id]
        if model.stage is Residency.LOADING or model.residency is Residency.FETCHING or model.is_moving:
            raise InUse(f"model {model_id} is being loaded; try again in a moment")

    def check_pinnable(self, model_id: ModelId) -> None:
        """Raise DoesNotFit if pinning the model would leave another one without room to run."""
        pinned = [m.facts for m in self.models.values() if m.pinned or m.facts.id == model_id]
        check_pins(self.device, pinned, (m.facts for m in self.models.values()))

    def check_unloadable(self, model_id: ModelId) -> None:
        """Raise InUse if the model is pinned."""
        if self.models[model_id].pinned:
            raise InUse(f"model {model_id} is pinned; unpin it first")

    @property
    def is_idle(self) -> bool:
        return not self._in_flight

    def check_integrity(self) -> None:
        """Raise IntegrityError unless state and ledger agree to the byte."""
        self.ledger.check_integrity()
        if self.ledger.kv.keys() != self.requests.keys():
            raise IntegrityError("instance: requests and KV tables differ")
        filed = [request.id for model in self.models.values() for request in model.requests()]
        leaving = [request.id for request in self.requests.values() if request.to_end]
        if sorted([*filed, *leaving]) != sorted(self.requests):
            raise IntegrityError("instance: a live request is filed nowhere, or twice")

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────

    def _arrive(self, arrived: Arrived) -> None:
        request = arrived.request
        model = self.models[request.model]
        tenant = self.metrics.tenant(request.tenant)
        self.metrics.of(request.model).last_asked_s = self.now_s
        table, share = self.ledger.open(request.id, model.facts.kv), self.shares.enter(request)
        state = RequestState(arrived, model, table, tenant, share)
        if arrived.n_kept:
            self.ledger.adopt(request.id, arrived.n_kept)
        self.requests[request.id] = state
        model.file(state)
        self.live_models[request.model] = model
        n_waiting = sum(len(m.waiting) for m in self.live_models.values())
        self._tell(state, RequestPhase.QUEUED, position=n_waiting)

    def _pause(self, request_id: RequestId, at_s: float) -> None:
        request = self.requests.get(request_id)
        if request is not None and not request.is_paused and not request.to_end:
            request.paused_since_s = at_s
            self.shares.leave(request.share)
            request.model.file(request)
            self._tell(request, RequestPhase.PAUSED)

    def _resume(self, request_id: RequestId, at_s: float) -> None:
        request = self.requests.get(request_id)
        if request is not None and request.paused_since_s is not None and not request.to_end:
            request.shift_s += at_s - request.paused_since_s
            if request.since_s is not None:
                request.since_s += at_s - request.paused_since_s
            request.paused_since_s = None
            request.share = self.shares.enter(request.request)
            request.set_deadline()
            request.model.file(request)
            self._tell(request, RequestPhase.QUEUED)

    def _end(self, request: RequestState, reason: FinishReason | None, detail: str = "") -> None:
        if request.to_end is None:
            request.model.unfile(request)
        if request.to_end is None or request.to_end[0] is None:
            request.to_end = (reason, detail)
        if request.in_step or request.in_copy:
            return
        reason, detail = request.to_end
        n_clean = request.kv.n_clean
        self.ledger.close(request.id)
        del self.requests[request.id]
        if not request.is_paused:
            self.shares.leave(request.share)
        if not request.model.has_requests and self.live_models.get(request.request.model) is request.model:
            del self.live_models[request.request.model]
        if reason is None:
            self._withdrawn.append(
                Arrived(
                    self.now_s,
                    request.request,
                    request.n_drawn,
                    n_clean,
                    request.n_on_time,
                    request.first_token_s,
                    request.last_token_s,
                    (request.artifact.allowance_s, request.artifact.late_s),
                )
            )
            return
        record = RequestRecord(
            request.request,
            reason,
            request.first_token_s,
            self.now_s,
            request.last_token_s,
            request.n_drawn,
            request.n_on_time,
            request.artifact.late_s,
        )
        self.metrics.of(request.request.model).service.count_end(record)
        request.tenant.count_end(record)
        if self.metrics.on_record:
            self.metrics.on_record(record)
        self._ended.append((record, detail))

    def _tell(self, request: RequestState, phase: RequestPhase, position: int = 0) -> None:
        if request.told_phase is not phase:
            request.told_phase = phase
            self._phases.append(PhaseMessage(request.id, phase, position))

    def _remove(self, model: ModelState) -> None:
        for request in list(model.requests()):
            self._end(request, FinishReason.FAILED, f"model {model.facts.id} was removed from the catalogue")
        user = self._in_flight.get(Channel.COPY_IN if model.stage is Residency.LOADING else Channel.COMPUTE)
        if user is not None and user.model is model.facts and user.id not in self._orphans:
            self._orphans.add(user.id)
            self.resident_models.pop(model.facts.id, None)
        elif model.stage is Residency.RESIDENT:
            self._evict(model)
        del self.models[model.facts.id]
        self._on_disk_at = None
        self.asked_models.pop(model.facts.id, None)
        self.live_models.pop(model.facts.id, None)

    def _want(self, model: ModelState, wanted: bool | None, pinned: bool | None) -> None:
        model.pinned = model.pinned if pinned is None else pinned
        model.fetch_after_s = -inf
        if wanted is not None:
            here = model.stage is Residency.RESIDENT
            is_so = wanted is here and model.stage is not Residency.LOADING
            model.wanted = None if is_so else wanted
        self._file_asked(model)

    def _file_asked(self, model: ModelState) -> None:
        if model.pinned or model.wanted is not None:
            self.asked_models[model.facts.id] = None
        else:
            self.asked_models.pop(model.facts.id, None)

    # ── at once ──────────────────────────────────────────────────────────────────────────────────────────────

    def _do_at_once(self, action: AtOnce) -> None:
        match action:
            case Evict(model_id):
                model = self._model(model_id)
                validate.evict(self, model)
                self._evict(model)
            case Drop(request_id):
                request = self._request(request_id)
                validate.forget(request, len(request.kv.device) - request.kv.n_missing)
                self.ledger.drop(request_id)
                self._refile(request)
                if request.kv.n_missing:
                    self._tell(request, RequestPhase.PAGED_OUT)
            case Discard(request_id):
                request = self._request(request_id)
                validate.forget(request, len(request.kv.device))
                self.ledger.discard(request_id)
                request.kv = self.ledger.kv[request_id]
                self.metrics.n_discards += 1
                self._refile(request)
                self._tell(request, RequestPhase.QUEUED)

    def _evict(self, model: ModelState) -> None:
        self.ledger.displace(model.facts)
        model.stage = None
        model.wanted = None
        self._file_asked(model)
        del self.resident_models[model.facts.id]

    def _refile(self, request: RequestState) -> None:
        if request.to_end is None:
            request.model.file(request)

    # ── beginning an operation ───────────────────────────────────────────────────────────────────────────────

    def _start(self, channel: Channel, operation: Operation) -> Started:
        validate.channel(channel, operation)
        match operation:
            case Step():
                started = self._start_step(operation)
            case Activate(model_id):
                started = self._start_activate(self._model(model_id), operation)
            case PageIn(requests) | PageOut(requests):
                started = self._start_paging(channel, requests, operation)
            case Compact():
                started = self._start_compact(operation)
            case Fetch(model_id):
                started = self._start_fetch(self._model(model_id), operation)
        self._in_flight[channel] = started
        self._next_operation += 1
        self._find_superseded()
        return started

    def _start_step(self, step: Step) -> Started:
        model = self._model(step.model)
        validate.step(self, model, step)
        for chunk in step.chunks:
            request = self.requests[chunk.request]
            self.ledger.grow(request.kv, chunk.start + chunk.n_tokens + step.repeat - 1)
            request.in_step = True
            self._tell(request, RequestPhase.RUNNING)
        self.interrupted = False
        model.stepped_since_load = True
        work = self._work(step)
        return Started(self._next_operation, Channel.COMPUTE, step, self.now_s, model=model.facts, work=work)

    def _start_activate(self, model: ModelState, operation: Activate) -> Started:
        validate.activate(self, model)
        images = self.ledger.place(model.facts)
        for image in images:
            self.ledger.cache.hold(image.id)
        model.stage = Residency.LOADING
        self._swap_compute_s = self._compute_busy_s()
        self._swap_reason = _swap_reason(model)
        for request in model.requests():
            if not request.is_paused:
                self._tell(request, RequestPhase.LOADING)
        n_bytes = sum(image.n_bytes for image in images)
        return Started(
            self._next_operation,
            Channel.COPY_IN,
            operation,
            self.now_s,
            n_bytes,
            model=model.facts,
            images=images,
        )

    def _start_paging(self, channel: Channel, ids: tuple[RequestId, ...], operation: Operation) -> Started:
        requests = [self._request(request_id) for request_id in ids]
        validate.paging(channel, requests)
        transfers = self._begin_paging(channel, ids)
        for request in requests:
            request.in_copy = True
            self._paging_computed[channel, request.id] = request.kv.n_computed
        n_bytes = sum(t.shape.block_bytes for _, blocks in transfers for t in blocks)
        return Started(
            self._next_operation, channel, operation, self.now_s, n_bytes, transfers=tuple(transfers)
        )

    def _begin_paging(
        self, channel: Channel, ids: tuple[RequestId, ...]
    ) -> list[tuple[RequestId, tuple[Transfer, ...]]]:
        """Blocks for all of these requests; if one finds no room, the others give theirs back and the plan is illegal."""
        transfers: list[tuple[RequestId, tuple[Transfer, ...]]] = []
        try:
            for request_id in ids:
                begin = (
                    self.ledger.begin_page_in if channel is Channel.COPY_IN else self.ledger.begin_page_out
                )
                transfers.append((request_id, begin(request_id)))
        except IllegalPlan:
            for request_id, blocks in transfers:
                if channel is Channel.COPY_IN:
                    self.ledger.end_page_in(request_id, blocks, ok=False)
                else:
                    self.ledger.end_page_out(request_id, 0, ok=False)
            raise
        return transfers

    def _start_compact(self, operation: Compact) -> Started:
        fixed_kv = self._fixed_kv()
        planned = self.ledger.plan_compaction(operation.n_bytes, self._fixed_models(), fixed_kv=fixed_kv)
        planned = validate.compact(operation, planned)
        touched = self.ledger.moved_models(planned)
        if any(self.ledger.blocks.span(move.handle) for move in planned):
            touched.update(self.resident_models)
        for model_id in touched:
            self.models[model_id].is_moving = True
        moves = self.ledger.apply(planned)
        self.ledger.arena.frozen = True
        n_bytes = sum(move.n_bytes for move in moves)
        return Started(self._next_operation, Channel.COPY_IN, operation, self.now_s, n_bytes, moves=moves)

    def _start_fetch(self, model: ModelState, operation: Fetch) -> Started:
        validate.fetch(self, model)
        for request in model.waiting.values():
            self._tell(request, RequestPhase.LOADING)
        images, dropped = self.ledger.cache.begin_fetch(model.facts.images)
        n_bytes = sum(image.n_bytes for image in images)
        return Started(
            self._next_operation,
            Channel.FETCH,
            operation,
            self.now_s,
            n_bytes,
            model=model.facts,
            images=images,
            dropped=dropped,
        )

    def _work(self, step: Step) -> StepWork:
        prefill = pairs = rows = context = 0
        for chunk in step.chunks:
            end = chunk.start + chunk.n_tokens
            n_prefill = max(0, min(end, self.requests[chunk.request].request.n_prompt) - chunk.start)
            prefill += n_prefill
            pairs += n_prefill * chunk.start + n_prefill * (n_prefill + 1) // 2
            n_rows = chunk.n_tokens - n_prefill
            rows += n_rows
            context += n_rows * end - n_rows * (n_rows - 1) // 2
        beside_copy = Channel.COPY_IN in self._in_flight or Channel.COPY_OUT in self._in_flight
        return StepWork(prefill, pairs, rows, context, beside_copy)

    # ── completing one ───────────────────────────────────────────────────────────────────────────────────────

    def _end_step(self, event: StepDone) -> None:
        started = self._pop(Channel.COMPUTE, event.operation)
        step = started.operation
        assert isinstance(step, Step)
        assert started.model is not None
        validate.step_done(step, event)
        n_iterations = len(event.ends_s)
        finished = dict(event.finished)
        seconds = event.at_s - started.at_s
        counters = self.metrics.of(step.model)
        row_s = seconds / sum(chunk.n_tokens for chunk in step.chunks)
        drawn: dict[tuple[ServiceCounters, float | None], int] = {}
        for chunk in step.chunks:
            request = self.requests[chunk.request]
            request.in_step = False
            request.tenant.gpu_s += row_s * chunk.n_tokens
            request.share.had_s += row_s * chunk.n_tokens / request.share.weight
            was_prompt = max(0, min(chunk.start + chunk.n_tokens, request.request.n_prompt) - chunk.start)
            if was_prompt:
                counters.service.n_prompt_tokens += was_prompt
                request.tenant.n_prompt_tokens += was_prompt
            if chunk.start + chunk.n_tokens == request.n_tokens:
                since = (request.tenant, request.since_s)
                drawn[since] = drawn.get(since, 0) + 1
                self._draw(request, counters.service, event.ends_s)
                request.kv.n_computed = request.n_tokens - 1
            else:
                request.kv.n_computed = chunk.start + chunk.n_tokens
            if request.n_drawn >= request.request.max_tokens:
                self._end(request, FinishReason.LENGTH)
            elif request.id in finished:
                self._end(request, finished[request.id])
            elif request.to_end:
                self._end(request, *request.to_end)
            else:
                self._refile(request)
        self.shares.settle()
        self.metrics.count_drawn(counters.service, drawn, event.ends_s)
        counters.compute_s += seconds
        counters.service.gpu_s += seconds
        self.metrics.busy_s[Channel.COMPUTE] += seconds
        self.metrics.n_steps += n_iterations
        self.cost.observe_step(started.model, _mean_work(started.work, n_iterations), seconds / n_iterations)
        if started.id in self._orphans:
            self._orphans.remove(started.id)
            self.ledger.displace(started.model)
        else:
            model = self.models[step.model]
            model.last_used_s = event.at_s
            model.forget_deadlines()
        for observer in self.completion_observers:
            observer(started, event)

    def _draw(self, request: RequestState, model: ServiceCounters, ends_s: tuple[float, ...]) -> None:
        on_time = count_on_time(request.deadline_s, request.request.service.tpot_s, ends_s)
        since_s = request.request.arrival_s if request.last_token_s is None else request.last_token_s
        request.artifact.drawn(since_s, ends_s, request.request.service.tpot_s)
        request.n_tokens += len(ends_s)
        request.n_on_time += on_time
        model.n_tokens_on_time += on_time
        request.tenant.n_tokens_on_time += on_time
        request.last_token_s = request.since_s = ends_s[-1]
        if request.first_token_s is None:
            request.first_token_s = ends_s[0]
            model.ttft.add(ends_s[0] - request.request.arrival_s)
            request.tenant.ttft.add(ends_s[0] - request.request.arrival_s)
        request.set_deadline()

    def _end_copy(self, event: CopyDone) -> None:
        channel = next((c for c, s in self._in_flight.items() if s.id == event.operation), None)
        if channel is None:
            raise InternalError(f"operation {event.operation} completed but is not in flight")
        started = self._pop(channel, event.operation)
        seconds = event.at_s - started.at_s
        self.metrics.busy_s[channel] += seconds
        ok = not event.error
        self._awaited.discard(event.operation)
        self.metrics.n_superseded += event.error == SUPERSEDED
        match started.operation:
            case Activate():
                self._end_activate(started, seconds, ok)
            case PageIn() | PageOut():
                self._end_paging(started, ok)
            case Compact():
                self.ledger.arena.frozen = False
                for model in self.models.values():
                    model.is_moving = False
            case Fetch(model_id):
                self.ledger.cache.end_fetch(started.images, ok)
                fetched = self.models.get(model_id)
                if fetched is not None and event.error != SUPERSEDED:
                    self._fetched(fetched, self.cost.copy_s(channel, started.n_bytes), event.error)
        if ok and not started.moves:
            self.metrics.copied_bytes[channel] += started.n_bytes
            if started.n_bytes:
                self.cost.observe_copy(channel, started.n_bytes, seconds)
        for observer in self.completion_observers:
            observer(started, event)

    def _fetched(self, model: ModelState, fetch_s: float, error: str) -> None:
        """A fetch, which should take so long, came to its end: those who waited for one that failed are told."""
        model.fetch_pause_s = max(fetch_s, 2 * model.fetch_pause_s) if error else 0.0
        model.fetch_after_s = self.now_s + model.fetch_pause_s
        for request in list(model.requests()) if error else ():
            self._end(request, FinishReason.FAILED, error)

    def _end_activate(self, started: Started, seconds: float, ok: bool) -> None:
        assert started.model is not None
        for image in started.images:
            self.ledger.cache.unhold(image.id)
        orphaned = started.id in self._orphans
        self._orphans.discard(started.id)
        if orphaned or not ok:
            self.ledger.displace(started.model)
            if not orphaned:
                self.models[started.model.id].stage = None
            return
        model = self.models[started.model.id]
        model.stage = Residency.RESIDENT
        model.stepped_since_load = False
        model.last_used_s = self.now_s
        model.wanted = False if model.wanted is False else None
        self._file_asked(model)
        self.resident_models[model.facts.id] = model
        exposed_s = max(0.0, seconds - (self._compute_busy_s() - self._swap_compute_s))
        waited = [request for request in model.requests() if not request.is_paused]
        counters = self.metrics.of(model.facts.id)
        self.metrics.count_swap(counters, self._swap_reason, started.n_bytes, seconds, exposed_s)
        self.metrics.charge((request.tenant for request in waited), exposed_s)
        for request in waited:
            request.share.had_s += exposed_s / len(waited) / request.share.weight
        self.shares.settle()
        for request in waited:
            self._tell(request, RequestPhase.PAGED_OUT if request.kv.n_missing else RequestPhase.QUEUED)

    def _end_paging(self, started: Started, ok: bool) -> None:
        for request_id, transfers in started.transfers:
            request = self.requests[request_id]
            request.in_copy = False
            n_computed = self._paging_computed.pop((started.channel, request_id))
            if started.channel is Channel.COPY_IN:
                self.ledger.end_page_in(request_id, transfers, ok)
            else:
                self.ledger.end_page_out(request_id, n_computed, ok)
            if request.to_end:
                self._end(request, *request.to_end)
            else:
                self._refile(request)

    def _pop(self, channel: Channel, operation: int) -> Started:
        started = self._in_flight.pop(channel, None)
        if started is None or started.id != operation:
            raise InternalError(
                f"operation {operation} completed on {channel.name}, where {started} was in flight"
            )
        return started

    def _find_superseded(self) -> None:
        """A model is on its way whose requests have all gone meanwhile, and another that has some waits for the channel."""
        for channel, lacking in ((Channel.COPY_IN, Residency.HOST), (Channel.FETCH, Residency.DISK)):
            started = self._in_flight.get(channel)
            if started is None or started.model is None or started.model.id not in self.models:
                continue
            model = self.models[started.model.id]
            if model.has_requests or model.wanted or model.pinned:
                self._awaited.add(started.id)
            elif started.id in self._awaited and any(
                other.residency is lacking for other in self.live_models.values()
            ):
                self._awaited.discard(started.id)
                self._superseded.append(started.id)

    # ── small questions ──────────────────────────────────────────────────────────────────────────────────────

    def _model(self, model: ModelId) -> ModelState:
        if model not in self.models:
            raise IllegalPlan(f"there is no model {model}")
        return self.models[model]

    def _request(self, request: RequestId) -> RequestState:
        if request not in self.requests:
            raise IllegalPlan(f"there is no request {request}")
        return self.requests[request]

    def _fixed_models(self) -> list[ModelFacts]:
        """Models whose weights must stay where they are: a step or a copy in flight addresses them."""
        fixed = [model.facts for model in self.models.values() if model.stage is Residency.LOADING]
        step = self._in_flight.get(Channel.COMPUTE)
        return [*fixed, step.model] if step and step.model else fixed

    def _fixed_kv(self) -> list[RequestId]:
        """Requests whose KV must stay where it is: an operation in flight addresses it."""
        return [request.id for request in self.requests.values() if request.in_step or request.in_copy]

    def _compute_busy_s(self) -> float:
        """Busy seconds of the compute channel up to now, the step in flight included."""
        step = self._in_flight.get(Channel.COMPUTE)
        return self.metrics.busy_s[Channel.COMPUTE] + (self.now_s - step.at_s if step else 0.0)

    def _note(self, decided: Operation | AtOnce) -> None:
        for observer in self.decision_observers:
            observer(self.now_s, decided)


def _swap_reason(model: ModelState) -> SwapReason:
    if model.n_live:
        return SwapReason.FIRST if model.last_used_s == -inf else SwapReason.AGAIN
    return SwapReason.OPERATOR if model.pinned or model.wanted else SwapReason.AHEAD


def _mean_work(work: StepWork, n_iterations: int) -> StepWork:
    """The work of the middle iteration of a repeated step: durations are linear in it."""
    return work._replace(context_tokens=work.context_tokens + work.decode_rows * (n_iterations - 1) // 2)
