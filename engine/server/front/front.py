"""The front: every accepted request between its client and the worker.

It has requests admitted and tokenized (`tokenmux.server.front.admission`), submits them, and hands each
client its own stream. It pauses the requests of clients that do not read and ends them after a while, cancels
those of clients that left, and when a worker dies, tells the next one everything anew: the models, and every
live request with the tokens that its client already has. Operators' commands are in
`tokenmux.server.front.administration`, the life of the worker in `tokenmux.server.workers.supervisor`.

Everything runs on one event loop; only decoders, the catalogue and the start of a worker are opened in
threads.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tokenmux.core.errors import (
    DoesNotFit,
    Ended,
    InternalError,
    NotServable,
    TokenmuxError,
    Unavailable,
    WorkerFailed,
)
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase, Residency
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.span import Span
from tokenmux.messages.commands import Cancel, Load, Pause, Pin, Register, Resume
from tokenmux.messages.reports import (
    Acknowledged,
    Finished,
    Report,
    Tokens,
    Traced,
    WorkerStatus,
    WorkerUse,
)
from tokenmux.server.front.admission import Admission
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.generation import AboutModel, Ask, Prompt
from tokenmux.server.front.live_request import LiveRequest
from tokenmux.server.front.model_store import ModelStore
from tokenmux.server.front.model_text import PromptEncoder
from tokenmux.server.front.pending_commands import Commands, Pending
from tokenmux.server.front.pool_size import Capacity, PoolSize
from tokenmux.server.front.request_rules import Defaults
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.tenants import Weights
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.server.front.usage import Usage
from tokenmux.server.workers.outage import Outage
from tokenmux.server.workers.supervisor import Patience, RestartLimits, Supervisor
from tokenmux.server.workers.suspects import Suspects
from tokenmux.server.workers.worker_protocol import WorkerFactory

logger = logging.getLogger(__name__)

DECODER_THREADS = 2
MAX_DOUBLINGS = 3
"""Of the time that trials may take."""
PROVEN_TOKENS = 2
"""A request that brings so many tokens with a worker, or ends, did not break it."""
CONVICTIONS = 2
CONVICTIONS_OF_PROVEN = 5
"""After so many requests of one model that broke workers, with none that got anywhere in between and none
that waits, the model is refused: sooner if no request of it ever got anywhere."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the front takes on."""

    max_requests: int = 256
    """Accepted and not yet ended; what is more is refused, but for tenants that hold less than their share
    (`tokenmux.server.front.tenants`)."""
    buffer_tokens: int = 512
    """Tokens that a client may leave unread before its request is paused."""
    unread_s: float = 60.0
    """How long it may stay paused before it is ended."""
    deaths_per_request: int = 2
    """After so many deaths of workers that had it and did not get anywhere with it, a request is tried alone
    (`tokenmux.server.workers.suspects`); it ends when one more worker breaks over it."""
    trial_s: float = 40.0
    """A trial that has not ended by then ends without a verdict, and later ones may take twice as long:
    longer than a hung worker goes unnoticed."""
    restarts: RestartLimits = field(default_factory=RestartLimits)
    patience: Patience = field(default_factory=Patience)
    outage_s: float = 30.0
    """Requests wait so long for a worker; then they are refused until there is one."""


class Front:
    """See the module. Use `start`, then `open` for each generation, then `close`."""

    def __init__(
        self,
        factory: WorkerFactory,
        catalogue: ModelStore,
        capacity: Capacity,
        *,
        pinned: Collection[str] = (),
        limits: Limits | None = None,
        defaults: Defaults | None = None,
        weights: Weights | None = None,
        recorder: TrafficRecorder | None = None,
        encoder: PromptEncoder,
        clock: Callable[[], float] = time.monotonic,
        draw_seed: Callable[[], int] = lambda: secrets.randbits(64),
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`pinned` names the models to pin from the start; `encoder` is closed with the front. `clock` must
        be the one that the worker's times are on: CLOCK_MONOTONIC is, across processes of one machine."""
        self.limits = limits or Limits()
        self.changes = Changes()
        """Notified when a worker's status, the roster or the readiness changed."""
        self.worker_status: WorkerStatus | None = None
        """The latest; None before the first and while there is no worker."""
        self.usage = Usage()
        self.recorder = recorder
        self.draining = False
        """Whether `drain` was called."""
        self._catalogue = catalogue
        self.size = PoolSize(capacity)
        self._pin_at_start = frozenset(pinned)
        self._clock = clock
        self._threads = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="decoder")
        self._encoder = encoder
        self.models = ServedModels(self._threads)
        self._admission = Admission(
            self.models,
            self._encoder,
            self.size,
            max_requests=self.limits.max_requests,
            defaults=defaults or Defaults(),
            weights=weights or Weights(),
            refusal=self._refusal,
            clock=clock,
            draw_seed=draw_seed,
        )
        self._supervisor = Supervisor(
            lambda on_reports: factory(on_reports, arena_bytes=self.size.arena_bytes),
            on_report=self._receive,
            on_broken=self._worker_broke,
            on_started=self._worker_started,
            on_down=lambda error: self._outage.begin(error),
            on_given_up=self._give_up,
            limits=self.limits.restarts,
            patience=self.limits.patience,
            clock=clock,
            sleep=sleep,
        )
        self.commands = Commands(self._supervisor.send)
        self._live: dict[RequestId, LiveRequest] = {}
        self._unread_timers: dict[RequestId, asyncio.TimerHandle] = {}
        self._n_open = 0
        self._registering: set[Pending] = set()
        self._registered = asyncio.Event()
        self._down: TokenmuxError | None = Unavailable("the server is starting: try again in a moment")
        self._given_up: TokenmuxError | None = None
        self._sleep = sleep
        self._suspects: Suspects[RequestId | Load] = Suspects(self.limits.deaths_per_request)
        """Requests, and models whose loading was asked for without a request (they are pinned)."""
        self._trial: asyncio.Task[None] | None = None
        self._n_unregistered_deaths = 0
        """How many workers in a row broke before they had taken all models."""
        self._telling: asyncio.Task[None] | None = None
        self._told: ServedModel | None = None
        """The model that the worker is being told of, while it is told one at a time."""
        self._outage = Outage(
            self.limits.outage_s,
            on_change=self.changes.notify,
            on_refusal=self._end_live,
            clock=clock,
            sleep=sleep,
        )

    async def start(self) -> None:
        """Start the worker and register every model of the catalogue with it.

        Models that are damaged or do not fit are kept and refused. Raises DoesNotFit when none of them fits,
        and Unavailable when no worker could be kept alive. Once this has returned, workers that break are
        replaced for ever.
        """
        for served in await asyncio.to_thread(self._entries):
            served.pinned = served.name in self._pin_at_start
            try:
                if served.refusal is None:
                    self.size.check_model(served.facts, ())
            except DoesNotFit as error:
                served.refusal = error
            if served.refusal is not None:
                logger.warning("%s is refused: %s", served.name, served.refusal)
            self.models.add(served)
        refusals = [served.refusal for served in self.models if isinstance(served.refusal, DoesNotFit)]
        if refusals and len(refusals) == len(self.models):
            raise DoesNotFit(f"no model of the catalogue fits the device; for one: {refusals[0]}")
        await self._supervisor.start()
        await self._registered.wait()
        if self._given_up is not None:
            raise self._given_up
        self._down = None
        self.changes.notify()

    def end_streams(self) -> None:
        """End what is still live, each with how far it got. Nothing is accepted any more."""
        self._down = self._given_up = Unavailable(
            "the server has stopped: try another one, or this one again later"
        )
        for live in list(self._live.values()):
            n = live.n_delivered
            live.fail(
                Unavailable(
                    f"the server stopped after {n} tokens of request {live.id}: "
                    "send it again, to another server or to this one later"
                )
            )
            self._drop(live)
        self._registered.set()
        self.changes.notify()

    async def close(self) -> None:
        """End what is live, stop the worker, release the threads. Takes seconds at most, whatever hangs."""
        self.end_streams()
        self._outage.close()
        for task in (self._trial, self._telling):
            if task is not None:
                task.cancel()
        await self._supervisor.close()
        self.commands.fail(Unavailable("the server has stopped"))
        self._encoder.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def drain(self) -> None:
        """Refuse new requests from now on, and wait until the clients of the others have all they asked
        for."""
        self.draining = True
        self._down = Unavailable("the server is shutting down: try another one, or this one again later")
        self.changes.notify()
        while self._n_open:
            await self.changes.after(self.changes.version)

    @property
    def ready(self) -> bool:
        """Whether requests are accepted and there is a worker, or will be in a moment."""
        return self._down is None and self._outage.reason is None

    @property
    def worker_running(self) -> bool:
        return self._supervisor.running

    @property
    def n_restarts(self) -> int:
        return self._supervisor.n_restarts

    @property
    def n_live(self) -> int:
        """Requests that hold a place: accepted, and not yet ended on the worker's side."""
        return len(self._live) + self._admission.n_admitting

    def n_live_of(self, model: ModelId) -> int:
        """Requests of a model whose clients still wait."""
        return sum(live.model == model and not live.closed for live in self._live.values())

    @asynccontextmanager
    async def open(self, ask: Ask) -> AsyncIterator[LiveRequest]:
        """Admit a request and yield its stream of events; leaving the context early cancels it.

        Raises what the error tree has for a request that cannot be accepted. The stream raises Ended,
        WorkerFailed or Unavailable when an accepted request could not be completed.
        """
        live = await self._admit(ask)
        self._n_open += 1
        try:
            yield live
        finally:
            self._n_open -= 1
            if self.draining:
                self.changes.notify()
            self._leave(live)

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[int, ...]:
        """As `Admission.tokenize`."""
        return await self._admission.tokenize(model, prompt)

    async def metadata(self, model: str) -> AboutModel:
        """As `Admission.metadata`."""
        return await self._admission.metadata(model)

    async def trace(self, last_s: float) -> tuple[Span, ...]:
        """What the worker remembers of the last `last_s` seconds. Raises Unavailable without a worker."""
        if not self.worker_running:
            raise Unavailable("there is no worker at this moment: try again when `pool status` shows one")
        return await self.commands.trace(last_s)

    def now_s(self) -> float:
        """On the clock of `Request.arrival_s`."""
        return self._clock()

    def check_fit(self, served: ServedModel) -> None:
        """Raises DoesNotFit when the device can never hold the model."""
        self.size.check_model(served.facts, self.models.pinned())

    def reconsider(self) -> None:
        """The pool has another size: models that were refused for theirs are served if they fit now."""
        for served in self.models:
            if isinstance(served.refusal, DoesNotFit):
                try:
                    self.check_fit(served)
                except DoesNotFit as error:
                    served.refusal = error
                else:
                    served.refusal = None
                    self._register(served)
                    self._pin(served)
        self.changes.notify()

    def _entries(self) -> list[ServedModel]:
        """What the catalogue has: a damaged entry is refused, and no reason not to serve the others."""
        found = []
        for name in self._catalogue.names():
            try:
                found.append(ServedModel(self._catalogue.get(name)))
            except TokenmuxError as error:
                found.append(ServedModel(None, refusal=error, name=name))
        return found

    # Admission

    async def _admit(self, ask: Ask) -> LiveRequest:
        submit, detokenizer = await self._admission.submission(ask)
        live = LiveRequest(
            submit,
            detokenizer,
            self.limits.buffer_tokens,
            self._stopped_reading,
            self._reads_again,
            self._clock,
        )
        self._live[live.id] = live
        self._admission.take_place(live.request.tenant)
        if self._suspects.arrive(live.id, suspected=self.models.find(live.model).n_convicted > 0):
            self._submit(live)
        else:
            self._go_on_trying()
        return live

    def _refusal(self) -> TokenmuxError | None:
        """Why requests are not accepted at this moment."""
        return self._down or self._outage.refusal

    def _submit(self, live: LiveRequest, *, first: bool = False) -> None:
        """Give a request to the worker. Without one, or one that is being told what there is, it waits."""
        if self._supervisor.running and self._telling is None:
            self._supervisor.send(live.resubmission())
            live.n_at_worker = live.n_delivered
            self._suspects.sent(live.id, first=first)
            if live.paused:
                self._supervisor.send(Pause(live.id))

    # The client's side

    def _leave(self, live: LiveRequest) -> None:
        """The client is done with the stream, or gone."""
        if not live.closed:
            self._end(live, Ended(f"the client of request {live.id} left"))

    def _end(self, live: LiveRequest, error: TokenmuxError) -> None:
        """End the request from our side; the worker's `Finished` takes it off the books."""
        live.fail(error)
        self._forget_timer(live)
        if self._with_worker(live):
            self._supervisor.send(Cancel(live.id))
        else:
            self._drop(live)

    def _with_worker(self, live: LiveRequest) -> bool:
        """Whether the present worker was given it, and will say when it ends."""
        return self._supervisor.running and self._telling is None and not self._suspects.holds(live.id)

    def _stopped_reading(self, live: LiveRequest) -> None:
        live.pause()
        self._supervisor.send(Pause(live.id))
        self._unread_timers[live.id] = asyncio.get_running_loop().call_later(
            self.limits.unread_s, self._never_read, live
        )

    def _reads_again(self, live: LiveRequest) -> None:
        live.resume()
        self._forget_timer(live)
        self._supervisor.send(Resume(live.id))

    def _never_read(self, live: LiveRequest) -> None:
        self._end(
            live,
            Ended(
                f"request {live.id} was ended: its client left more than {self.limits.buffer_tokens} "
                "tokens unread for "
                f"{self.limits.unread_s:g} s; read the stream as it arrives, or ask for fewer tokens"
            ),
        )

    def _forget_timer(self, live: LiveRequest) -> None:
        timer = self._unread_timers.pop(live.id, None)
        if timer is not None:
            timer.cancel()

    # The worker's side

    def _receive(self, message: Report) -> None:
        match message:
            case Tokens() | PhaseChanged() | Finished():
                live = self._live.get(message.request)
                if live is not None:
                    self._deliver(live, message)
            case WorkerStatus():
                self.worker_status = message
                for model in message.models:
                    if model.pinned and model.residency is Residency.RESIDENT:
                        self._suspects.progressed(Load(model.model))
                self.changes.notify()
            case WorkerUse():
                self.usage.take(message)
                self.changes.notify()
            case Acknowledged() | Traced():
                self.commands.answered(message)

    def _deliver(self, live: LiveRequest, message: Tokens | PhaseChanged | Finished) -> None:
        """Whatever goes wrong with one request's output is that request's end, and no other's."""
        try:
            match message:
                case Tokens():
                    if self._suspects.is_unproven(live.id):
                        self._look_for_progress(live, message)
                    if live.take_tokens(message):
                        self._supervisor.send(Cancel(live.id, FinishReason.STOP))
                case PhaseChanged():
                    live.take_state(message)
                case Finished():
                    if message.reason in (FinishReason.STOP, FinishReason.LENGTH):
                        self._proven(live.id, live.model)
                    self._drop(live)
                    live.take_finished(message)
        except Exception:
            logger.exception("request %s: its output could not be delivered", live.id)
            self._end(live, InternalError(f"request {live.id} failed; the server's log says why"))
        if live.closed:
            self._forget_timer(live)

    def _worker_started(self) -> None:
        """Tell a new worker everything: the models, then the requests with what their clients have."""
        self._registered.clear()
        if self._n_unregistered_deaths >= self.limits.deaths_per_request:
            self._telling = asyncio.create_task(self._tell_one_by_one(), name="register models")
            return
        for served in self.models:
            if served.refusal is None:
                self._register(served)
        self._tell_pins()
        self._tell_requests()

    async def _tell_one_by_one(self) -> None:
        """Workers broke before they had taken all models: so it shows which one it is (see
        `_worker_broke`)."""
        for served in list(self.models):
            if served.refusal is None:
                self._told = served
                await asyncio.wait([self._register(served)])
        self._told = self._telling = None
        self._tell_pins()
        self._tell_requests()

    def _tell_pins(self) -> None:
        """After all models, so that each pin is judged by what it leaves to every one of them."""
        for served in self.models:
            if served.refusal is None and not self._suspects.holds(Load(served.facts.id)):
                self._pin(served)

    def _tell_requests(self) -> None:
        for live in list(self._live.values()):
            if not self._suspects.holds(live.id):
                self._submit(live, first=True)
        if not self._registering:
            self._all_registered()
        self._go_on_trying()

    def _all_registered(self) -> None:
        self._n_unregistered_deaths = 0
        self._supervisor.served()
        self._registered.set()
        self._outage.serves()

    # What breaks workers

    def _go_on_trying(self) -> None:
        """Give the worker the next suspects, if the last ones are through."""
        if self._trial is not None and not self._suspects.waited_for:
            self._trial.cancel()
            self._trial = None
        while self._supervisor.running and self._telling is None and (subjects := self._suspects.release()):
            for subject in subjects:
                if not isinstance(subject, Load):
                    self._submit(self._live[subject])
                elif subject.model in self.models:
                    self._pin(self.models.find(subject.model))
        if self._trial is None and self._suspects.waited_for:
            self._trial = asyncio.create_task(self._end_trial(), name="trial")

    async def _end_trial(self) -> None:
        await self._sleep(self.limits.trial_s * 2.0 ** min(self._suspects.n_hurried, MAX_DOUBLINGS))
        self._trial = None
        self._suspects.hurry()
        self._go_on_trying()

    def _look_for_progress(self, live: LiveRequest, tokens: Tokens) -> None:
        if tokens.index + len(tokens.token_ids) - live.n_at_worker >= PROVEN_TOKENS:
            self._proven(live.id, live.model)

    def _proven(self, subject: RequestId | Load, model: ModelId) -> None:
        """It got somewhere with the present worker."""
        self._suspects.progressed(subject)
        if model in self.models:
            served = self.models.find(model)
            served.n_convicted, served.proven = 0, True
        self._outage.end()
        if self._suspects.trying:
            self._go_on_trying()

    def _convict(self, guilty: RequestId | Load) -> None:
        """It broke a worker while it was the only thing that could have: it goes to no other."""
        if isinstance(guilty, Load):
            self._refuse(self.models.find(guilty.model), "workers broke again and again when it was loaded")
            return
        live = self._live[guilty]
        live.fail(
            NotServable(
                f"request {live.id} is given up: workers broke over it, the last one while it was "
                "tried alone; "
                "do not send it again, and please report it with the server's log"
            )
        )
        self._drop(live)
        if live.model not in self.models:
            return
        served = self.models.find(live.model)
        served.n_convicted += 1
        n = served.n_convicted
        limit = CONVICTIONS_OF_PROVEN if served.proven else CONVICTIONS
        if n >= limit and not any(other.model == live.model for other in self._live.values()):
            self._refuse(served, f"{n} of its requests broke workers, and none made progress in between")

    def _refuse(self, served: ServedModel, why: str) -> None:
        """A model is not given to workers any more; its requests end with the reason."""
        model = served.facts.id
        served.refusal = NotServable(
            f"{model} is not served: {why}; look at the server's log, then unregister it or restart "
            "the server"
        )
        logger.error("%s", served.refusal)
        for live in list(self._live.values()):
            if live.model == model:
                self._end(live, served.refusal)
        self.changes.notify()

    def _register(self, served: ServedModel) -> Pending:
        answer = self.commands.begin(Register(served.facts, str(served.path)))
        self._registering.add(answer)
        answer.add_done_callback(lambda done: self._registration_answered(served, done))
        return answer

    def _pin(self, served: ServedModel) -> None:
        if served.pinned and served.refusal is None:
            self._suspects.sent(Load(served.facts.id))
            answer = self.commands.begin(Pin(served.facts.id, True))
            self._registering.add(answer)
            answer.add_done_callback(lambda done: self._pin_answered(served, done))

    def _pin_answered(self, served: ServedModel, answer: Pending) -> None:
        """A pin that the worker does not take is not in force, and is not shown as if it were."""
        error = answer.exception()
        if isinstance(error, TokenmuxError) and not isinstance(error, Unavailable):
            logger.error("%s is not pinned: %s", served.facts.id, error)
            served.pinned = False
            self.changes.notify()
        self._taken(answer)

    def _registration_answered(self, served: ServedModel, answer: Pending) -> None:
        error = answer.exception()
        if isinstance(error, TokenmuxError) and not isinstance(error, Unavailable):
            logger.error("the worker does not take %s: %s", served.name, error)
            served.refusal = error
            self.changes.notify()
        self._taken(answer)

    def _taken(self, answer: Pending) -> None:
        """The worker has answered a registration or a pin."""
        self._registering.discard(answer)
        if not self._registering and self._supervisor.running and self._telling is None:
            self._all_registered()

    def _worker_broke(self) -> None:
        """Settle what is over anyway; the rest waits for the next worker."""
        self.worker_status = None
        self.usage = Usage()
        for task in (self._trial, self._telling):
            if task is not None:
                task.cancel()
        self._trial = self._telling = None
        self.changes.notify()
        broken = WorkerFailed("the worker broke and is being restarted: try again in a moment")
        self.commands.fail(broken)
        if self._supervisor.has_spoken:
            self._blame()  # before those are forgotten whose clients left meanwhile: they may be the cause
        else:
            self._suspects.spared()
        for live in list(self._live.values()):
            if live.closed or live.conclude():
                self._drop(live)
        for live in self._live.values():
            live.take_state(PhaseChanged(live.id, RequestPhase.QUEUED))
        self._outage.broke()

    def _blame(self) -> None:
        """The worker broke over something that it had been told."""
        told, self._told = self._told, None
        if told is not None:
            self._refuse(told, "a worker broke each time when it was told of this model")
        elif not self._registered.is_set():
            self._n_unregistered_deaths += 1
        guilty = self._suspects.died()
        if guilty is not None:
            self._convict(guilty)

    def _end_live(self, error: TokenmuxError) -> None:
        for live in list(self._live.values()):
            live.fail(error)
            self._drop(live)

    def _give_up(self, error: TokenmuxError) -> None:
        """There will be no worker at all."""
        self._down = self._given_up = error
        self._end_live(error)
        self._registered.set()
        self.changes.notify()

    def _drop(self, live: LiveRequest) -> None:
        """It is over on the worker's side as well."""
        self._forget_timer(live)
        del self._live[live.id]
        self._admission.give_back_place(live.request.tenant)
        self._suspects.forget(live.id)
        if self._suspects.trying:
            self._go_on_trying()
        if self.recorder is not None:
            self.recorder.ended(live.request, live.n_delivered)
