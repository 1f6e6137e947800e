"""One accepted request, as the front sees it: what was delivered, what its client has yet to read, and how it
ends. A call with several choices is as many requests (`tokenmux.server.front.call`).

It turns token ids from a node into text and events, counts what was on time, and always knows what a new
node would need to continue it (`resubmission`). It sends nothing itself:
`tokenmux.server.front.live_requests` talks to the node.

    node ── Tokens ─▶ take_tokens ─▶ detokenizer ─▶ EventBuffer ─▶ client
           ── Finished ─▶ take_finished

Its two sides end separately. The client's side has ended (`closed`) when the last event is in the buffer or
the client left; the node's side when `Finished` came. In between the request still holds memory, and counts
as live.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from msgspec.structs import replace

from tokenmux.core.errors import Ended, ErrorCode, InternalError, TokenmuxError, error_of
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.record import RequestHistory
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.sampling import LogProbabilities
from tokenmux.messages.commands import Submit
from tokenmux.messages.reports import Finished, PromptPooled, PromptTold, Tokens
from tokenmux.server.front.buffer import EventBuffer
from tokenmux.server.front.call_reader import CallReader, joined_calls
from tokenmux.server.front.ends import out_of_time
from tokenmux.server.front.generation import FinishInfo, PlacedCall, PromptDelta, TokenDelta
from tokenmux.server.front.model_text import OutputText
from tokenmux.server.front.pooled_prompt import PooledPrompt


@dataclass(slots=True)
class RequestTimes:
    """Times of a request's events, in seconds on the clock of `Request.arrival_s`; None if not yet."""

    ran_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    n_on_time: int = 0
    paused_since_s: float | None = None
    paused_s: float = 0.0
    loading_since_s: float | None = None
    loading_s: float = 0.0


class LiveRequest:
    """One accepted request; see the module. All methods run on the event loop. Its events go into
    `buffer`."""

    def __init__(
        self,
        submit: Submit,
        detokenizer: OutputText,
        buffer: EventBuffer,
        clock: Callable[[], float],
        *,
        call: RequestId | None = None,
        request_id: str = "",
        choice: int = 0,
        tells_phase: bool = True,
        echo: str = "",
        includes_stop: bool = False,
        calls: CallReader | None = None,
        on_end: Callable[[FinishInfo | TokenmuxError], None] = lambda end: None,
    ) -> None:
        """Choice number `choice` of the call with the id `call`, by default its own; the one that
        `tells_phase` speaks for the others. `request_id` is what the client calls the call. `detokenizer` has
        been given the tokens that the client holds. `echo` is the text that comes before the output; with
        `includes_stop`, the stop string that ends it comes last. `calls` reads calls of tools in it.
        `on_end` is told once how it ended for its client."""
        self.id = submit.request.id
        self.request_id = request_id
        self.model = submit.request.model
        self.call = call or self.id
        self.closed = False
        """True if the client's side has ended."""
        self.phase = RequestPhase.QUEUED
        self.n_at_node = 0
        """Tokens that existed when the present node was given the request; `LiveRequests` sets it."""
        self.submit = submit
        self._detokenizer = detokenizer
        self._calls = calls
        self._choice = choice
        self._tells_phase = tells_phase
        self._includes_stop = includes_stop
        self._clock = clock
        self._on_end = on_end
        self._delivered: list[int] = list(submit.delivered)
        self._times = RequestTimes()
        self._buffer = buffer
        self._pooled = (
            None if submit.pooling is None else PooledPrompt(submit.pooling, submit.request.n_prompt)
        )
        self._n_told = submit.request.n_prompt
        """Tokens of the prompt whose log-probabilities the client has got, or does not want."""
        self._n_cached = 0
        """Tokens of the prompt that the prefix cache had, as told with the first token."""
        if submit.n_prompt_likeliest is not None:
            self._n_told = 1
            first = submit.prompt[:1]
            buffer.put(PromptDelta(0, first, (None,), self._spellings(first, ())))
        if echo and not submit.delivered:
            buffer.put(TokenDelta(0, (), echo, choice=choice))

    @property
    def request(self) -> Request:
        return self.submit.request

    @property
    def n_delivered(self) -> int:
        """Number of tokens delivered so far, with those that its client brought along."""
        return len(self._delivered)

    @property
    def paused(self) -> bool:
        return self._times.paused_since_s is not None

    def resubmission(self) -> Submit:
        """What a node needs to begin, or to continue after the existing tokens. It computes all hidden states
        again."""
        if self._pooled is not None:
            self._pooled.begin()
        times = self._times
        history = RequestHistory(times.n_on_time, times.first_token_s, times.last_token_s, self._paused_s())
        asked = self.submit.n_prompt_likeliest if self._n_told < self.request.n_prompt else None
        return replace(
            self.submit, delivered=tuple(self._delivered), history=history, n_prompt_likeliest=asked
        )

    def take_state(self, state: PhaseChanged) -> None:
        """Tell the client the phase of its request: of several choices, that of the first."""
        self.phase = state.phase
        self._note_loading(state.phase is RequestPhase.LOADING)
        if state.phase is RequestPhase.RUNNING and self._times.ran_s is None:
            self._times.ran_s = self._clock()
        if self._tells_phase and not self.closed:
            self._buffer.put(state)

    def take_prompt(self, told: PromptTold) -> None:
        """Tell the client of its prompt. What is known already is skipped; a gap raises InternalError."""
        known = self._n_told - told.index
        if known < 0:
            said = f"request {self.id}: told of its prompt from {told.index}, but only {self._n_told} before"
            raise InternalError(said)
        fresh = told.log_probabilities[known:]
        if fresh:
            index = self._n_told
            self._n_told += len(fresh)
            tokens = self.submit.prompt[index : self._n_told]
            self._buffer.put(PromptDelta(index, tokens, fresh, self._spellings(tokens, fresh)))

    def take_pooled(self, pooled: PromptPooled) -> None:
        """Add a sum of hidden states of its prompt. A gap raises InternalError."""
        if self._pooled is None:
            raise InternalError(f"request {self.request_id}: hidden states that it did not ask for")
        self._pooled.add(pooled.rows)

    def take_tokens(self, tokens: Tokens) -> bool:
        """Take new output. True if a stop string ended the request, which the node cannot know.

        Tokens that are already known are skipped (a new node may repeat some); a gap raises InternalError.
        """
        if self.closed:  # what a step in flight still draws for a client that left
            return False
        known = len(self._delivered) - tokens.index
        if known < 0:
            raise InternalError(
                f"request {self.request_id}: tokens from index {tokens.index}, but only "
                f"{len(self._delivered)} before"
            )
        fresh = tokens.token_ids[known:]
        if not fresh:
            return False
        if self._times.first_token_s is None:
            self._n_cached = tokens.n_cached
        index = len(self._delivered)
        text = ""
        calls: tuple[PlacedCall, ...] = ()
        for position, token_id in enumerate(fresh, start=index):
            self._delivered.append(token_id)
            if self._ends(token_id, position):
                break
            said = self._detokenizer.push((token_id,))
            if self._calls is not None:
                said, found = self._calls.push(said)
                calls += found
            text += said
            if self._detokenizer.stopped is not None:
                break
        self._note_delivered(index, tokens.at_s)
        told = tokens.log_probabilities[known : known + len(self._delivered) - index]
        new = tuple(self._delivered[index:])
        spellings = self._spellings(new, told) if told else ()
        self._buffer.put(TokenDelta(index, new, text, told, self._choice, spellings, joined_calls(calls)))
        if self._detokenizer.stopped is not None:
            self._complete(FinishReason.STOP)
            return True
        return False

    def take_finished(self, finished: Finished) -> None:
        """The node's side has ended, and so does the client's, if it has not yet."""
        match finished.reason:
            case FinishReason.STOP | FinishReason.LENGTH:
                if not self.submit.draws:
                    self._n_cached = finished.n_cached
                    self._times.last_token_s = finished.at_s
                self._complete(finished.reason)
            case FinishReason.CANCELLED:
                self.fail(
                    Ended(f"request {self.request_id} was cancelled: {finished.detail or 'its client left'}")
                )
            case FinishReason.EXPIRED:
                self.fail(out_of_time(self.request_id, self.n_delivered))
            case FinishReason.FAILED:
                said = f"request {self.request_id} failed: {finished.detail or 'no reason was given'}"
                self.fail(error_of(finished.code or ErrorCode.ENDED, said))

    def conclude(self) -> bool:
        """End the request if its tokens show that it is complete, although the node broke before saying
        so."""
        if len(self._delivered) >= self.submit.request.max_tokens:
            self._complete(FinishReason.LENGTH)
        elif self._delivered and self._ends(self._delivered[-1], len(self._delivered) - 1):
            self._complete(FinishReason.STOP)
        return self.closed

    def fail(self, error: TokenmuxError) -> None:
        """End the client's side with an error, without the events not yet read, and the stream, which other
        choices of the call may share."""
        if not self.closed:
            self.closed = True
            self._buffer.close(error)
            self._on_end(error)

    def pause(self) -> None:
        """Stop this request's deadlines from now on."""
        if not self.paused:
            self._times.paused_since_s = self._clock()

    def resume(self) -> None:
        """Resume this request's deadlines."""
        if self._times.paused_since_s is not None:
            self._times.paused_s += self._clock() - self._times.paused_since_s
            self._times.paused_since_s = None

    def _ends(self, token_id: int, position: int) -> bool:
        """True if the node stops at this token. Such a token is delivered as an id, but not as text."""
        return token_id in self.submit.stop_token_ids and position + 1 >= self.submit.min_tokens

    def _spellings(
        self, tokens: Iterable[int], told: Iterable[LogProbabilities]
    ) -> tuple[tuple[int, bytes], ...]:
        """The ids and bytes of `tokens`, and of the others whose log-probabilities are told."""
        named = chain(tokens, (token for one in told for token, _ in one.likeliest))
        return tuple((token, self._detokenizer.spell(token)) for token in dict.fromkeys(named))

    def _note_delivered(self, index: int, at_s: float) -> None:
        """Note when the tokens from `index` on were drawn (`at_s`), and count those on time. Pauses by the
        client do not count."""
        times = self._times
        shift_s = self._paused_s()
        deadline_s = self.submit.request.deadline_s
        times.n_on_time += sum(at_s <= deadline_s(i) + shift_s for i in range(index, len(self._delivered)))
        times.first_token_s = at_s if times.first_token_s is None else times.first_token_s
        times.ran_s = at_s if times.ran_s is None else times.ran_s
        times.last_token_s = at_s

    def _note_loading(self, is_loading: bool) -> None:
        """Note whether its model's weights are on their way, from now on."""
        times = self._times
        if times.loading_since_s is not None:
            times.loading_s += self._clock() - times.loading_since_s
        times.loading_since_s = self._clock() if is_loading else None

    def _paused_s(self) -> float:
        """How long the client did not read, until now."""
        since_s = self._times.paused_since_s
        return self._times.paused_s + (0.0 if since_s is None else self._clock() - since_s)

    def _complete(self, reason: FinishReason) -> None:
        if self.closed:
            return
        vector = () if self._pooled is None else self._pooled.vector()
        stop_string = self._detokenizer.stopped
        last = len(self._delivered) - 1
        by_token = stop_string is None and last >= 0 and self._ends(self._delivered[last], last)
        if stop_string is None:
            rest = self._detokenizer.finish()
        else:
            rest = stop_string if self._includes_stop else ""
        calls: tuple[PlacedCall, ...] = ()
        if self._calls is not None:
            (rest, calls), (last_text, last_calls) = self._calls.push(rest), self._calls.finish()
            rest, calls = rest + last_text, joined_calls(calls + last_calls)
        if rest or calls:
            self._buffer.put(TokenDelta(len(self._delivered), (), rest, choice=self._choice, calls=calls))
        request, times = self.submit.request, self._times
        end_s = request.arrival_s if times.last_token_s is None else times.last_token_s
        info = FinishInfo(
            reason=reason,
            stop_string=stop_string,
            stop_token_id=self._delivered[last] if by_token else None,
            n_prompt=request.n_prompt,
            n_completion=len(self._delivered),
            n_on_time=times.n_on_time,
            queue_s=(end_s if times.ran_s is None else times.ran_s) - request.arrival_s,
            ttft_s=(end_s if times.first_token_s is None else times.first_token_s) - request.arrival_s,
            total_s=end_s - request.arrival_s,
            seed=self.submit.sampling.seed,
            choice=self._choice,
            n_resumed=request.n_resumed,
            n_cached=self._n_cached,
            vector=vector,
            called=self._calls is not None and self._calls.called,
            loading_s=times.loading_s,
        )
        self._buffer.put(info)
        self.closed = True
        self._buffer.complete()
        self._on_end(info)
