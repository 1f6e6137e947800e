"""Embeddings: each input of a call is a request of its own that draws nothing and ends with its prompt.

All inputs become token ids and are checked first, so that nothing is computed of a call that one input makes
invalid. Then a few requests run at once, placed, paged and recovered as any others. If one fails, or the
client leaves, the rest end at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenmux.core.errors import InternalError, InvalidRequest, TokenmuxError, Unavailable
from tokenmux.core.pooling import NoPooling, Pooling
from tokenmux.server.front.admission import Admission
from tokenmux.server.front.api_keys import Key
from tokenmux.server.front.calls import Calls
from tokenmux.server.front.counts import check_count
from tokenmux.server.front.few_at_once import each
from tokenmux.server.front.generation import Ask, FinishInfo, Text, TokenIds
from tokenmux.server.front.request_counters import RequestCounters
from tokenmux.server.front.request_rules import MIN_SECONDS, check_parameters, check_prompt_length
from tokenmux.server.front.served_models import ServedModel, ServedModels

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 300_000
"""Tokens of all inputs of a call together. Both limits are OpenAI's."""


@dataclass(frozen=True, slots=True)
class EmbedAsk:
    """Embeddings as their client asked for them. `timeout_s` is how long it waits, from now, for all of
    them."""

    model: str
    inputs: Sequence[Text | TokenIds]
    dimensions: int | None = None
    tenant: str = ""
    weight: float = 1.0
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """The embedding of one input, and its number of tokens."""

    values: tuple[float, ...]
    n_prompt: int


class Embeddings:
    """Answers calls for embeddings; see the module."""

    def __init__(
        self,
        models: ServedModels,
        admission: Admission,
        calls: Calls,
        counters: RequestCounters,
        clock: Callable[[], float],
    ) -> None:
        self._models = models
        self._admission = admission
        self._calls = calls
        self._counters = counters
        self._clock = clock

    async def embed(self, ask: EmbedAsk, caller: Key | None) -> list[Embedded]:
        """As `tokenmux.server.front.service.FrontService.embed`."""
        ends_s = math.inf if ask.timeout_s is None else self._clock() + ask.timeout_s
        with self._counters.refusing():
            served = self._models.accepting(ask.model)
            pooling = _pooling_of(served)
            prompts = await self._prompts(ask, served, pooling)

        async def embedded(place: int) -> Embedded:
            left_s = ends_s - self._clock()
            question = Ask(
                ask.model,
                TokenIds(prompts[place]),
                max_tokens=0,
                tenant=ask.tenant,
                weight=ask.weight,
                timeout_s=None if left_s == math.inf else max(left_s, MIN_SECONDS),
                pooling=pooling.kind,
            )
            try:
                vector = await self._vector(question, caller)
            except InvalidRequest as error:
                raise _about_input(error, place) from None
            return Embedded(_finished(pooling, vector, ask), len(prompts[place]))

        answers = await each(len(prompts), embedded)
        if not self._models.accepts(served):
            raise Unavailable(f"{ask.model} was replaced while it worked on the inputs: send them again")
        return answers

    async def _prompts(self, ask: EmbedAsk, served: ServedModel, pooling: Pooling) -> list[Sequence[int]]:
        """The token ids of all inputs. Raises InvalidRequest."""
        _check_dimensions(ask.dimensions, pooling, ask.model)
        if not ask.inputs:
            raise InvalidRequest("there are no inputs: give at least one", field="inputs")
        check_count("inputs", ask.inputs, MAX_INPUTS, field="inputs")
        first = Ask(
            ask.model,
            ask.inputs[0],
            max_tokens=0,
            weight=ask.weight,
            timeout_s=ask.timeout_s,
            pooling=pooling.kind,
        )
        try:
            check_parameters(first, served.facts)
        except InvalidRequest as error:
            raise _about_input(error, 0) from None

        async def tokenized(place: int) -> Sequence[int]:
            try:
                ids = await self._admission.tokenize(ask.model, ask.inputs[place])
                check_prompt_length(len(ids), served.facts, draws=False)
            except InvalidRequest as error:
                raise _about_input(error, place) from None
            return ids

        prompts = await each(len(ask.inputs), tokenized)
        n_tokens = sum(map(len, prompts))
        if n_tokens > MAX_INPUT_TOKENS:
            raise InvalidRequest(
                f"the inputs have {n_tokens} tokens: at most {MAX_INPUT_TOKENS} are allowed in one call",
                field="inputs",
                limit=MAX_INPUT_TOKENS,
                given=n_tokens,
            )
        return prompts

    async def _vector(self, ask: Ask, caller: Key | None) -> Sequence[float]:
        async with self._calls.open(ask, caller) as events:
            async for event in events:
                if isinstance(event, FinishInfo):
                    return event.vector
        raise InternalError("a stream ended without its last event")


def _pooling_of(served: ServedModel) -> Pooling:
    embedding = served.whole().embedding
    if isinstance(embedding, NoPooling):
        said = f"{served.name} makes no embeddings: {embedding.reason}"
        raise InvalidRequest(said, field="model", model=served.name)
    return embedding


def _check_dimensions(dimensions: int | None, pooling: Pooling, model: str) -> None:
    if dimensions is None or dimensions == pooling.n_dimensions:
        return
    if not pooling.shortens:
        said = (
            f"use {pooling.n_dimensions}, or leave it out: {model} does not say that shorter ones are useful"
        )
    elif pooling.lengths and dimensions not in pooling.lengths:
        said = f"{model} has embeddings of {', '.join(map(str, pooling.lengths))} or {pooling.n_dimensions}"
    elif not 1 <= dimensions <= pooling.n_dimensions:
        said = f"use 1 to {pooling.n_dimensions}"
    else:
        return
    raise InvalidRequest(f"dimensions {dimensions} is not available: {said}", field="dimensions", model=model)


def _finished(pooling: Pooling, vector: Sequence[float], ask: EmbedAsk) -> tuple[float, ...]:
    if len(vector) != pooling.n_dimensions:
        raise InternalError(
            f"{ask.model} gave {len(vector)} dimensions, and its checkpoint says {pooling.n_dimensions}"
        )
    values = pooling.finished(vector, ask.dimensions)
    if not all(map(math.isfinite, values)):
        raise TokenmuxError(f"{ask.model} computed an embedding with numbers that are not finite")
    return values


def _about_input(error: InvalidRequest, place: int) -> InvalidRequest:
    """The error as one about an input, unless it is about something else."""
    if error.named != "prompt" and error.field is not None:
        return error
    told = type(error)(f"input {place}: {error}", field=f"inputs[{place}]")
    told.details = error.details
    return told
