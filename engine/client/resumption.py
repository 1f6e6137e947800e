"""Generations that go on when a server is lost, at another one or at its successor: nothing comes twice,
nothing is lost, and what is drawn again is the same.

    response ─▶ take ─▶ what the caller has not had yet
    UNAVAILABLE ─▶ wait_s ─▶ the same request again, with the tokens that the caller holds

A call for a whole answer begins again with the id, seed and length that the server told ahead of it.

The tokens of the last delta are asked for again, since only a server knows if one of them was the end.
"""

import random
import time
from collections import defaultdict
from dataclasses import dataclass, field

import grpc

from tokenmux.client.deadlines import deadline_s
from tokenmux.client.errors import CallFailed
from tokenmux.v1 import inference_pb2

DELIVERED = "delivered"
"""The field's name, as a feature."""
PROMPT_INFO = "tokenmux-prompt-info-bin"
"""The metadata in which the server tells what it made of a request, ahead of a whole answer."""
_LONGEST_EXPONENT = 32
"""Waits have long reached their limit by then."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """How often a generation that broke off is tried again before its next token has come: at most `n_tries`
    times. Waits begin at `first_wait_s` and double up to `max_wait_s`; chance makes each up to a half longer
    or shorter.

    The defaults bridge half a minute.
    """

    n_tries: int = 10
    first_wait_s: float = 0.2
    max_wait_s: float = 5.0

    def wait_s(self, n_failed: int) -> float:
        """How long to wait after that many failures."""
        grown_s: float = self.first_wait_s * 2 ** min(n_failed - 1, _LONGEST_EXPONENT)
        return min(grown_s, self.max_wait_s) * random.uniform(0.5, 1.5)


DEFAULT_RESUMPTION = Resumption()


class _Text:
    """A text of which the caller holds a beginning: the output's own, or the arguments of a call."""

    __slots__ = ("n_held", "n_told")

    def __init__(self) -> None:
        self.n_held = 0
        self.n_told = 0
        """Characters that came from the present server, or before it."""

    def new_part(self, text: str) -> str:
        """What the caller does not hold of the next part."""
        self.n_told += len(text)
        new = text[len(text) - max(self.n_told - self.n_held, 0) :]
        self.n_held = max(self.n_held, self.n_told)
        return new


@dataclass(slots=True)
class _Output:
    """What the caller holds of one choice. `before_last` is the number of tokens before the last delta with
    tokens, and how much of each text had been told then. The texts are the output's own (None), and the
    arguments of its calls."""

    token_ids: list[int] = field(default_factory=list)
    texts: defaultdict[int | None, _Text] = field(default_factory=lambda: defaultdict(_Text))
    before_last: tuple[int, dict[int | None, int]] = (0, {})
    complete: bool = False

    def take(self, delta: inference_pb2.TokenDelta) -> bool:
        """Take what the caller holds already out of a delta. False if nothing else is in it."""
        n_known = min(max(len(self.token_ids) - delta.index, 0), len(delta.token_ids))
        if n_known < len(delta.token_ids):
            self.before_last = delta.index, {key: text.n_told for key, text in self.texts.items()}
        delta.text = self.texts[None].new_part(delta.text)
        calls = [call for call in delta.tool_calls if self._take_call(call)]
        del delta.tool_calls[:]
        delta.tool_calls.extend(calls)
        delta.index += n_known
        del delta.token_ids[:n_known]
        del delta.logprobs[:n_known]
        self.token_ids += delta.token_ids
        return bool(delta.token_ids or delta.text or delta.tool_calls)

    def _take_call(self, call: inference_pb2.ToolCallDelta) -> bool:
        """The same for a piece of a call."""
        if call.index in self.texts:
            call.id = call.name = ""
        call.arguments = self.texts[call.index].new_part(call.arguments)
        return bool(call.name or call.arguments)

    def delivered(self) -> inference_pb2.Delivered:
        """What the next server is told. One that is told of no tokens begins again, with an echo if that is
        asked for."""
        n_tokens, told = self.before_last
        for key, text in self.texts.items():
            text.n_told = told.get(key, 0) if n_tokens else 0
        return inference_pb2.Delivered(token_ids=self.token_ids[:n_tokens], complete=self.complete)


class GenerationProgress:
    """How far one generation is, over all its calls."""

    def __init__(
        self,
        request: inference_pb2.GenerateStreamRequest,
        timeout_s: float | None,
        resumption: Resumption | None,
    ) -> None:
        """Without `resumption` it ends with its first call."""
        self._request = request
        self._resumption = resumption
        left_s = deadline_s(timeout_s)
        self._ends_s = None if left_s is None else time.monotonic() + left_s
        self._outputs: defaultdict[int, _Output] = defaultdict(_Output)
        self._begun = False
        self._n_prompt_told = 0
        """Tokens of the prompt whose log-probabilities the caller holds."""
        self._n_failed = 0
        self._broke: CallFailed | None = None
        """The error of the call that broke off, until the next token comes."""

    @property
    def request(self) -> inference_pb2.GenerateStreamRequest:
        """What to send now."""
        return self._request

    @property
    def left_s(self) -> float | None:
        """The deadline of a call that begins now."""
        return None if self._ends_s is None else max(0.0, self._ends_s - time.monotonic())

    def take(self, response: inference_pb2.GenerateStreamResponse) -> bool:
        """Note a response, and take what the caller holds already out of it. False if nothing is left."""
        match response.WhichOneof("event"):
            case "prompt_info":
                is_first, self._begun = not self._begun, True
                if is_first:
                    self._keep(response.prompt_info)
                return is_first
            case "tokens":
                is_new = self._outputs[response.tokens.choice].take(response.tokens)
                if is_new:
                    self._n_failed, self._broke = 0, None
                return is_new
            case "prompt_logprobs":
                return self._take_prompt(response.prompt_logprobs)
            case "finish_info":
                self._outputs[response.finish_info.choice].complete = True
        return True

    def wait_s(self, error: CallFailed) -> float:
        """How long to wait before the request is sent again, after its call ended with `error`. Raises the
        error that the caller should get if it is not to be sent again."""
        if not self._begun:
            self._take_ahead(error)
        if self._resumption is None or not self._begun or not self._may_pass(error):
            raise error
        broke = self._broke = self._broke or error
        self._n_failed += 1
        wait_s = self._resumption.wait_s(self._n_failed)
        left_s = self.left_s
        if self._n_failed > self._resumption.n_tries or (left_s is not None and left_s <= wait_s):
            raise broke
        self._hand_over()
        return wait_s

    def _take_ahead(self, error: CallFailed) -> None:
        """Note what the server told before the whole answer was lost, if it had accepted the request."""
        cause = error.__cause__
        headers = cause.initial_metadata() if isinstance(cause, grpc.Call | grpc.aio.AioRpcError) else None
        for key, value in headers or ():
            if key == PROMPT_INFO and isinstance(value, bytes):
                self._begun = True
                self._keep(inference_pb2.PromptInfo.FromString(value))

    def _may_pass(self, error: CallFailed) -> bool:
        """True if another try may succeed. Once the server was lost, its successor may be full, and the
        request still be live where the loss was not noticed."""
        if self._broke is None:
            return error.code is grpc.StatusCode.UNAVAILABLE
        return error.retryable or error.code is grpc.StatusCode.ALREADY_EXISTS

    def _hand_over(self) -> None:
        """Tell the next server what the caller holds."""
        request = self._request.request
        del request.delivered[:]
        request.delivered.extend(self._outputs[i].delivered() for i in range(max(1, request.n)))
        if DELIVERED not in request.required_features:
            request.required_features.append(DELIVERED)  # an older server would start over
        if self._outputs[0].token_ids:
            request.ClearField("prompt_logprobs")  # they came before the first token of this choice

    def _take_prompt(self, told: inference_pb2.PromptLogprobs) -> bool:
        """As `take`. The first token of a prompt has no log-probability."""
        n_known = min(max(self._n_prompt_told - told.index, 0), len(told.token_ids))
        del told.logprobs[: n_known if told.index else max(n_known - 1, 0)]
        told.index += n_known
        del told.token_ids[:n_known]
        if told.index:
            told.ClearField("first_spelling")
        self._n_prompt_told = max(self._n_prompt_told, told.index + len(told.token_ids))
        return bool(told.token_ids)

    def _keep(self, info: inference_pb2.PromptInfo) -> None:
        """Whatever the first server chose, the next one is told."""
        request = self._request.request
        request.request_id = info.request_id
        request.sampling.seed = info.seed
        request.stopping.max_tokens = info.max_tokens
