"""All accepted requests between their clients and the node, until the node has let go of them.

    add ─▶ Submit ─▶ node ─ Tokens, PhaseChanged, Finished ─▶ deliver ─▶ the client's stream
    client left, or an error ─▶ end ─▶ Cancel, then Finished, for all choices of the call

`tokenmux.server.front.slow_readers` handles clients that stop reading.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tokenmux.core.errors import Ended, InternalError, NotServable, TokenmuxError
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.messages.commands import Cancel, Command
from tokenmux.messages.reports import Finished, PromptPooled, PromptTold, Tokens
from tokenmux.server.front.call import AdmittedChoice, Call
from tokenmux.server.front.ends import cancelled_by_id, out_of_time
from tokenmux.server.front.generation import PromptInfo
from tokenmux.server.front.live_request import LiveRequest
from tokenmux.server.front.queue_pace import QueuePace
from tokenmux.server.front.request_counters import RequestCounters
from tokenmux.server.front.slow_readers import SlowReaders
from tokenmux.server.front.tenants import QueuePlaces
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.server.front.trials import Trials

logger = logging.getLogger(__name__)

PROVEN_TOKENS = 2
"""A request that gets this many tokens from a node, or ends, did not break it."""


class LiveRequests:
    """The requests that hold a place: accepted, and not yet ended on the node's side."""

    def __init__(
        self,
        send: Callable[[Command], object],
        trials: Trials,
        places: QueuePlaces,
        *,
        pace: QueuePace,
        takes: Callable[[], bool],
        on_proven: Callable[[LiveRequest], None],
        buffer_tokens: int,
        unread_s: float,
        recorder: TrafficRecorder | None,
        counters: RequestCounters,
        clock: Callable[[], float],
    ) -> None:
        """`takes` says whether there is a node that takes requests; `on_proven` is called for each
        request with which the present node made progress."""
        self._send = send
        self._trials = trials
        self._places = places
        self._pace = pace
        self._takes = takes
        self._on_proven = on_proven
        self._buffer_tokens = buffer_tokens
        self._recorder = recorder
        self._counters = counters
        self._clock = clock
        self._slow_readers = SlowReaders(buffer_tokens, unread_s, send, self.end)
        self._requests: dict[RequestId, LiveRequest] = {}
        self._calls: dict[RequestId, Call] = {}
        """The calls of these requests."""

    def __iter__(self) -> Iterator[LiveRequest]:
        """All present requests; they may end during the iteration."""
        return iter(list(self._requests.values()))

    def __len__(self) -> int:
        return len(self._requests)

    def find(self, request: RequestId) -> LiveRequest:
        return self._requests[request]

    def n_of(self, model: ModelId) -> int:
        """Requests of a model whose clients still wait."""
        return sum(live.model == model and not live.closed for live in self._requests.values())

    def n_waiting(self) -> int:
        """Requests whose clients wait for output: they have not ended, and their clients read."""
        return sum(not live.closed and not live.paused for live in self._requests.values())

    def add(
        self,
        admitted: Sequence[AdmittedChoice],
        info: PromptInfo,
        *,
        suspected: bool,
        echo: str = "",
        includes_stop: bool = False,
    ) -> Call:
        """Take in an admitted call, of which `info` tells its client, and give its choices to the node. If
        their model is `suspected` of breaking nodes, this happens when they can be tried alone. Returns its
        stream. Raises TokenmuxError, with nothing taken in, if it cannot be sent to a node."""
        stopped, resumed = self._slow_readers.stopped, self._slow_readers.resumed
        call = Call(len(admitted), self._buffer_tokens, stopped, resumed)
        call.buffer.put(info)
        call.choices = [
            LiveRequest(
                choice.submit,
                choice.text,
                call.buffer,
                self._clock,
                call=admitted[0].submit.request.id,
                request_id=info.request,
                choice=choice.number,
                tells_phase=choice is admitted[0],
                echo=echo,
                includes_stop=includes_stop,
                calls=choice.calls,
                on_end=partial(self._counters.ended, choice.submit.request.model),
            )
            for choice in admitted
        ]
        self._calls[call.id] = call
        for live in call.choices:
            self._requests[live.id] = live
            self._places.take(live.request.tenant)
            self._pace.arrived(live.request)
        try:
            for live in call.choices:
                self._trials.arrive(live.id, suspected=suspected)
        except Exception:  # no node will say that they ended
            for live in call.choices:
                self._send(Cancel(live.id, FinishReason.CANCELLED))
                self._drop(live)
            raise
        return call

    def give(self, live: LiveRequest, *, first: bool = False) -> None:
        """Give a request to the node, with what its client already has. Without a node it waits for
        the next one."""
        if self._takes():
            self._send(live.resubmission())
            live.n_at_node = live.n_delivered
            self._trials.sent(live.id, first=first)
            self._slow_readers.given_to_node(live)

    def give_all(self) -> None:
        """Give a new node all requests that may go to it now."""
        for live in self:
            if not self._trials.holds(live.id):
                self.give(live, first=True)

    def deliver(self, report: Tokens | PromptTold | PromptPooled | PhaseChanged | Finished) -> None:
        """Pass the node's report of a request to its client. Any failure ends that request, and no
        other."""
        live = self._requests.get(report.request)
        if live is None:
            return
        try:
            match report:
                case Tokens():
                    if self._trials.is_unproven(live.id):
                        self._look_for_progress(live, report)
                    if live.take_tokens(report):
                        self._send(Cancel(live.id, FinishReason.STOP))
                case PhaseChanged():
                    live.take_state(report)
                    if report.phase is RequestPhase.RUNNING:
                        self._pace.ran(live.id)
                case PromptTold():
                    live.take_prompt(report)
                case PromptPooled():
                    live.take_pooled(report)
                case Finished():
                    if report.reason in (FinishReason.STOP, FinishReason.LENGTH):
                        self._on_proven(live)
                    self._drop(live)
                    live.take_finished(report)
        except NotServable as error:
            self.end(live, NotServable(f"request {live.request_id} failed: {error}"))
        except Exception:
            logger.exception("request %s: its output could not be delivered", live.id)
            said = f"request {live.request_id} failed; the server's log says why"
            self.end(live, InternalError(said))
        if live.closed:
            self._slow_readers.forget(live)
            self._pace.left(live.id)
            self._end_others(live)

    def leave(self, call: Call) -> None:
        """Its client is done with the stream, or gone."""
        for live in call.choices:
            if not live.closed:
                self.end(live, Ended(f"the client of request {live.request_id} left"))

    def expire(self, call: Call) -> None:
        """The time that its client gave it is over, whether or not a node has it."""
        for live in call.choices:
            if not live.closed:
                self.end(live, out_of_time(live.request_id, live.n_delivered), FinishReason.EXPIRED)

    def cancel(self, call: Call) -> None:
        """End a call for a caller who may do so."""
        for live in call.choices:
            if not live.closed:
                self.end(live, cancelled_by_id(live.request_id))

    def end(
        self, live: LiveRequest, error: TokenmuxError, reason: FinishReason = FinishReason.CANCELLED
    ) -> None:
        """End a request, and with it its call, from our side; it leaves the books with the node's
        `Finished`."""
        live.fail(error)
        self._slow_readers.forget(live)
        self._pace.left(live.id)
        if self._takes() and not self._trials.holds(live.id):
            self._send(Cancel(live.id, reason))
        else:
            self._drop(live)
        self._end_others(live)

    def fail(self, live: LiveRequest, error: TokenmuxError) -> None:
        """End a request that no node has, or of which the node will report nothing more, and with it its
        call."""
        live.fail(error)
        self._drop(live)
        self._end_others(live)

    def fail_all(self, error: TokenmuxError) -> None:
        for live in self:
            self.fail(live, error)

    def node_broke(self) -> None:
        """Settle requests that have ended in any case; the others wait for the next node."""
        for live in self:
            if live.closed or live.conclude():
                self._drop(live)
        for live in self:
            live.take_state(PhaseChanged(live.id, RequestPhase.QUEUED))

    def _look_for_progress(self, live: LiveRequest, tokens: Tokens) -> None:
        if tokens.index + len(tokens.token_ids) - live.n_at_node >= PROVEN_TOKENS:
            self._on_proven(live)

    def _end_others(self, live: LiveRequest) -> None:
        """If a request has failed, so has its call: end its other choices."""
        call = self._calls.get(live.call)
        for other in call.choices if call is not None and call.buffer.closed else ():
            if not other.closed:
                self.end(other, Ended(f"another choice of request {live.request_id} has ended"))

    def _drop(self, live: LiveRequest) -> None:
        """Forget a request that has ended on the node's side as well."""
        self._slow_readers.forget(live)
        if self._requests.pop(live.id, None) is None:
            return
        if not any(choice.id in self._requests for choice in self._calls[live.call].choices):
            del self._calls[live.call]
        self._places.give_back(live.request.tenant)
        self._trials.forget(live.id)
        self._pace.left(live.id)
        if self._recorder is not None:
            self._recorder.ended(live.submit, live.n_delivered - live.request.n_resumed)
