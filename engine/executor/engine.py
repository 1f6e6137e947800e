"""Carries an instance's plans out on a device, and speaks the worker's side of the messages.

    message ──▶ receive ─┐                           ┌─▶ device: start, interrupt, supersede, resize
    device ──▶ drawn ────┼─▶ instance ──▶ effects ───┤
    device ──▶ done ─────┘                           └─▶ emit(tokens, states, ends), at the next `pump`

One thread calls everything here; the caller provides the thread and the time (`loop.py` in a real worker, a
virtual clock in tests). No step ever waits for the engine: it prepares, starts, and is told.
"""

import logging
from collections.abc import Callable
from typing import Protocol, assert_never

from tokenmux.core.clock import Clock
from tokenmux.core.effects import (
    CopyEnded,
    Effects,
    Interrupt,
    ModelLoaded,
    RequestEnded,
    RequestEntered,
    RequestLeft,
    ResizeReady,
    StepEnded,
    Supersede,
)
from tokenmux.core.errors import DoesNotFit, ErrorCode, IntegrityError, NotFound, TokenmuxError
from tokenmux.core.event import (
    Arrived,
    Cancelled,
    Event,
    ModelAdded,
    ModelRemoved,
    ModelWanted,
    Paused,
    ResizeAsked,
    Resized,
    Resumed,
)
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.plan import Discard, Drop, Evict
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.device.device_protocol import Device, OperationDone
from tokenmux.executor.positions import QueuePositions
from tokenmux.executor.request_content import Content
from tokenmux.executor.stalls import Stalls
from tokenmux.executor.telemetry import Telemetry
from tokenmux.executor.worker_status import StatusReporter
from tokenmux.messages.commands import (
    AskTrace,
    Cancel,
    Load,
    Order,
    Pause,
    Pin,
    Register,
    Resize,
    Resume,
    Shutdown,
    Submit,
    Ticket,
    Unload,
    Unregister,
)
from tokenmux.messages.reports import Acknowledged, Alive, Broken, Finished, Report, Tokens
from tokenmux.scheduler.instance.instance import Instance

logger = logging.getLogger(__name__)

RESIZE_FLOOR_S = 60.0
RESIZE_BYTES_PER_S = 100e6
"""Allocating a new arena touches every page, which is slow if the system has to make room for it."""


class WeightsHost(Protocol):
    """Keeps the runnable side of models in step with where the instance has their weights."""

    def add(self, facts: ModelFacts, path: str) -> None:
        """A model was registered."""
        ...

    def remove(self, model: ModelId) -> None: ...

    def bind(self, model: ModelFacts) -> None:
        """The model's weights are where the ledger says (or are just being copied there)."""
        ...

    def unbind(self, model: ModelId) -> None: ...


class Engine:
    """One instance on one device. `observers` are called with all effects and their time, before they are
    carried out."""

    def __init__(
        self,
        instance: Instance,
        device: Device,
        clock: Clock,
        host: WeightsHost,
        emit: Callable[[list[Report]], None],
        contents: dict[RequestId, Content],
    ) -> None:
        self.instance = instance
        self.stopped = False
        self.observers: list[Callable[[float, Effects], None]] = []
        self._device = device
        self._clock = clock
        self._host = host
        self._emit = emit
        self._contents = contents
        self._status = StatusReporter(instance, clock)
        self._telemetry = Telemetry(instance, clock)
        self._stalls = Stalls(instance.cost)
        self._positions = QueuePositions(instance, clock)
        self._out: list[Report] = []
        self._answers: list[Acknowledged] = []
        """To commands that change what a status shows: they follow one that shows it."""
        self._resize_ticket = Ticket(0)
        """The ticket of the resize under way, if there is one."""
        self._loading: dict[int, StartedActivation | StartedFetch] = {}
        """Loads in flight, by their ids."""
        self._was_busy = False
        """True if an operation began since the books were last checked."""
        self._changed = False
        """True if anything happened since the policy was last asked. Drawn tokens do not count: their step
        goes on."""

    @property
    def next_report_due_s(self) -> float | None:
        """When to send a status or a report that was held back; None if there is none."""
        all_due_s = (self._status.due_s, self._telemetry.due_s, self._positions.due_s)
        return min((due_s for due_s in all_due_s if due_s is not None), default=None)

    # ── what comes in ───────────────────────────────────────────────────────────────────────────────────────

    def receive(self, order: Order) -> None:
        """Handle a command of the front. Errors in it are answered, never raised."""
        now_s = self._clock.now_s()
        self._changed = True
        ticket, command = order.ticket, order.command
        match command:
            case Submit():
                self._submit(command, now_s)
            case Cancel(request, reason):
                self._apply(Cancelled(now_s, request, reason))
            case Pause(request):
                self._apply(Paused(now_s, request))
            case Resume(request):
                self._apply(Resumed(now_s, request))
            case AskTrace(last_s):
                self._out.append(self._telemetry.trace(ticket, last_s))
            case Shutdown():
                self.stop()
            case Resize(arena_bytes):
                self._ask_resize(ticket, arena_bytes, now_s)
            case Register() | Unregister():
                self._out.append(self._administer(ticket, command, now_s))
            case Load() | Unload() | Pin():
                self._answers.append(self._administer(ticket, command, now_s))

    def stop(self) -> None:
        """End once what there is to say has been said; live requests stay as they are."""
        self.stopped = True

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        """One iteration of the step in flight drew these tokens."""
        self._stalls.stepped(self._clock.now_s())
        for request_id, token in tokens:
            request = self.instance.requests[request_id]
            if request.to_end is not None:
                continue
            content = self._contents[request_id]
            index = len(content.token_ids) - request.request.n_prompt
            content.token_ids.append(token)
            self._out.append(Tokens(request_id, index, (token,), at_s))

    def done(self, completion: OperationDone) -> None:
        """An operation completed."""
        self._changed = True
        self._stalls.ended(completion.operation, self._clock.now_s())
        self._apply(completion)

    def progress(self, operation: int, share: float) -> None:
        """A fetch or an activation has done this share of its bytes. Tell the requests that wait for the
        model."""
        self._stalls.advanced(operation, self._clock.now_s())
        load = self._loading.get(operation)
        model = self.instance.models.get(load.model.id) if load else None
        for request in model.waiting.values() if model else ():
            self._out.append(PhaseChanged(request.id, RequestPhase.LOADING, progress=share))

    def beat(self) -> None:
        """Report that this loop is alive; called once a second. Detects operations that hang and books
        that are wrong, either of which ends the worker."""
        fault = self._stalls.find(self._clock.now_s()) or self._wrong_books()
        if fault is None:
            self._emit([Alive()])
        else:
            self.broken(fault)
            self.pump()

    def broken(self, detail: str) -> None:
        """Report that the worker cannot continue, and stop. The front submits the requests elsewhere."""
        self._out.append(Broken(detail))
        self.stopped = True

    # ── what goes out ───────────────────────────────────────────────────────────────────────────────────────

    def pump(self) -> None:
        """Start what the policy wants next, and send what there is to report."""
        while self._changed and not self.stopped:
            self._changed = False
            self._carry_out(self.instance.decide(self._clock.now_s()))
        if self.instance.queue.version != self._positions.looked_at:
            self._out.extend(self._positions.report())
        use, status = self._telemetry.report(), self._status.report(at_once=bool(self._answers))
        if use is not None:
            self._out.append(use)
        if status is not None:
            self._out.append(status)
        if self._answers:
            self._out.extend(self._answers)
            self._answers.clear()
        if self._out:
            out, self._out = self._out, []
            self._emit(out)

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _apply(self, event: Event) -> None:
        self._carry_out(self.instance.apply(event))

    def _carry_out(self, effects: Effects) -> None:
        """Carry out and report what an event or a decision caused."""
        if not effects:
            return
        for observer in self.observers:
            observer(self.instance.now_s, effects)
        self._telemetry.note(effects)
        for effect in effects:
            match effect:
                case PhaseChanged():
                    self._out.append(effect)
                case StartedActivation():
                    self._start(effect)
                    self._loading[effect.id] = effect
                    # While the bytes are on their way: re-pointing takes as long as a tenth of the copy.
                    self._host.bind(effect.model)
                case StartedFetch():
                    self._start(effect)
                    self._loading[effect.id] = effect
                case StartedStep() | StartedPageIn() | StartedPageOut() | StartedCompaction():
                    self._start(effect)
                case Interrupt():
                    self._device.interrupt()
                case Supersede(operation):
                    self._device.supersede(operation)
                case CopyEnded():
                    self._copy_ended(effect)
                case RequestEnded():
                    self._request_ended(effect)
                case Evict(model):
                    self._host.unbind(model)
                case ResizeReady(arena_bytes):
                    self._resize(arena_bytes)
                case StepEnded() | ModelLoaded() | RequestEntered() | RequestLeft() | Drop() | Discard():
                    pass
                case _:
                    assert_never(effect)

    def _start(self, started: Started) -> None:
        self._was_busy = True
        self._stalls.began(started, self._clock.now_s())
        self._device.start(started)

    def _copy_ended(self, ended: CopyEnded) -> None:
        """Make runners point to where the weights are now."""
        self._loading.pop(ended.started.id, None)
        match ended.started:
            case StartedActivation(model=model) if ended.done.error and model.id in self.instance.models:
                self._host.unbind(model.id)
            case StartedCompaction(moves=moves):
                moved = self.instance.ledger.moved_models(moves)
                for model_id in sorted(moved & self.instance.resident_models.keys()):
                    self._host.bind(self.instance.models[model_id].facts)
            case _:
                pass

    def _request_ended(self, ended: RequestEnded) -> None:
        record = ended.record
        del self._contents[record.request.id]
        code = self._code_of(record, ended.detail)
        self._out.append(Finished(record.request.id, record.reason, record.end_s, ended.detail, code))

    def _wrong_books(self) -> str | None:
        """Describe what is wrong with the books; None if nothing is. Checked when no operation is in
        flight. Takes 0.05 ms for 100 models without requests, and 3 ms for each 50 requests that a client
        has paused."""
        if not self._was_busy or not self.instance.is_idle:
            return None
        self._was_busy = False
        try:
            self.instance.check_integrity()
        except IntegrityError as error:
            logger.exception("the books of the instance are wrong")
            return f"the books of the instance are wrong: {error}"
        return None

    def _resize(self, arena_bytes: int) -> None:
        """Replace the empty arena. This thread waits for it: nothing else could begin anyway."""
        answer = Acknowledged(self._resize_ticket)
        n_bytes = arena_bytes + self.instance.device.arena_bytes
        self._emit([Alive(silent_s=RESIZE_FLOOR_S + n_bytes / RESIZE_BYTES_PER_S)])
        try:
            self._device.resize(arena_bytes)
        except DoesNotFit as error:
            answer = Acknowledged(self._resize_ticket, str(error), error.code)
            arena_bytes = self.instance.device.arena_bytes
        self._apply(Resized(self._clock.now_s(), arena_bytes))
        self._answers.append(answer)
        self._changed = True

    def _submit(self, submit: Submit, now_s: float) -> None:
        request = submit.request
        if request.model not in self.instance.models:
            # The front checks this; only a removal at the same time gets here.
            detail = f"model {request.model} is no longer registered"
            self._out.append(Finished(request.id, FinishReason.FAILED, now_s, detail))
            return
        self._contents[request.id] = Content(submit, [*submit.prompt, *submit.delivered])
        self._apply(Arrived(now_s, request, len(submit.delivered), history=submit.history))

    def _ask_resize(self, ticket: Ticket, arena_bytes: int, now_s: float) -> None:
        """Answered now if it is refused, otherwise when it is done."""
        try:
            self.instance.check_resizable(arena_bytes)
        except TokenmuxError as error:
            self._out.append(Acknowledged(ticket, str(error), error.code))
        else:
            self._resize_ticket = ticket
            self._apply(ResizeAsked(now_s, arena_bytes))

    def _administer(
        self, ticket: Ticket, command: Register | Unregister | Load | Unload | Pin, now_s: float
    ) -> Acknowledged:
        model_id = command.facts.id if isinstance(command, Register) else command.model
        try:
            if isinstance(command, Register):
                self._host.add(command.facts, command.path)
                self._apply(ModelAdded(now_s, command.facts))
                return Acknowledged(ticket)
            if model_id not in self.instance.models:
                raise NotFound(f"model {model_id} is not registered")
            match command:
                case Unregister():
                    self.instance.check_removable(model_id)
                    self._apply(ModelRemoved(now_s, model_id))
                    self._host.remove(model_id)
                case Load():
                    self._apply(ModelWanted(now_s, model_id, wanted=True))
                case Unload():
                    self.instance.check_unloadable(model_id)
                    self._apply(ModelWanted(now_s, model_id, wanted=False))
                case Pin(_, pinned):
                    if pinned:
                        self.instance.check_pinnable(model_id)
                    self._apply(ModelWanted(now_s, model_id, pinned=pinned))
        except TokenmuxError as error:
            return Acknowledged(ticket, str(error), error.code)
        except Exception as error:
            if not isinstance(command, Register) or model_id in self.instance.models:
                raise
            logger.exception("%s cannot be registered", model_id)
            return Acknowledged(ticket, f"{model_id} cannot be registered: {error!r}", ErrorCode.NOT_SERVABLE)
        return Acknowledged(ticket)

    def _code_of(self, record: RequestRecord, detail: str) -> ErrorCode | None:
        """The error with which a request failed. Weights that cannot be read stay unreadable until someone
        repairs them."""
        model = self.instance.models.get(record.request.model)
        unreadable = detail and model is not None and detail == model.load_error
        return ErrorCode.BAD_CHECKPOINT if unreadable else None
