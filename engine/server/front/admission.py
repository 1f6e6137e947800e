"""From a client's question to what a node is sent, in two passes with one look-up of the model.

    first pass    what is cheap: is the server up, is there such a model, are numbers and names within bounds
    between       the prompt becomes token ids in a child process; the request holds a place in the queue
    second pass   what depends on the tokens: lengths, vocabulary, what fits the pool; defaults are filled in

The rules are in `tokenmux.server.front.request_rules`. Refusing early is a promise: nothing that could
be refused here may fail later, when it has cost others time.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

from msgspec.structs import replace as replace_fields

from tokenmux.core.errors import InternalError, InvalidRequest
from tokenmux.core.grammar import Grammar
from tokenmux.core.request import DEFAULT_TENANT, Request, RequestId
from tokenmux.core.sampling import Sampling, choice_seed
from tokenmux.messages.commands import Submit
from tokenmux.server.front.call import AdmittedChoice, choice_id
from tokenmux.server.front.call_reader import CallReader
from tokenmux.server.front.constraint_rules import check_can_end, check_constraint
from tokenmux.server.front.counts import check_token_ids
from tokenmux.server.front.delivered_tokens import retrace
from tokenmux.server.front.generation import (
    NONE_DELIVERED,
    AboutModel,
    Ask,
    Delivered,
    Encodable,
    Prompt,
    PromptInfo,
    Text,
    TokenIds,
    ToolChoice,
    Words,
)
from tokenmux.server.front.grammar_reader import GrammarReader
from tokenmux.server.front.model_text import ModelText, PromptEncoder
from tokenmux.server.front.pool_devices import PoolDevices
from tokenmux.server.front.queue_pace import QueuePace
from tokenmux.server.front.readiness import Readiness
from tokenmux.server.front.request_rules import (
    Defaults,
    check_choices,
    check_parameters,
    check_text_length,
    output_limit,
    service_level,
)
from tokenmux.server.front.sampling_rules import logit_rules, spellings
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.tenants import QueuePlaces, Weights
from tokenmux.server.front.tool_use import ToolUse, tool_use_of


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt between the two passes, and the question as its tools make it."""

    ask: Ask
    use: ToolUse | None
    """How calls of tools are read."""
    served: ServedModel
    text: ModelText
    prompt: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    """The tokens of the words that the output must not contain."""
    grammar: Grammar | None
    """What the output must obey."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Requests that may go to a node, one for each choice of a call, and the text that comes before their
    outputs. If an output is ended by a stop string, the string is left out, or comes last if it is
    `includes_stop`."""

    served: ServedModel
    info: PromptInfo
    choices: tuple[AdmittedChoice, ...]
    echo: str
    includes_stop: bool


class Admission:
    """Admits requests; see the module. Everything runs on the event loop."""

    def __init__(
        self,
        models: ServedModels,
        encoder: PromptEncoder,
        grammars: GrammarReader,
        devices: PoolDevices,
        places: QueuePlaces,
        readiness: Readiness,
        pace: QueuePace,
        *,
        defaults: Defaults,
        weights: Weights,
        max_choices: int,
        clock: Callable[[], float],
        draw_seed: Callable[[], int],
    ) -> None:
        """`draw_seed` gives the seed of a request without one."""
        self._models = models
        self._encoder = encoder
        self._grammars = grammars
        self._devices = devices
        self._places = places
        self._readiness = readiness
        self._pace = pace
        self._defaults = defaults
        self._weights = weights
        self._max_choices = max_choices
        self._clock = clock
        self._draw_seed = draw_seed

    async def admit(self, ask: Ask) -> Admitted:
        """Admit a request, which has its tenant and its id. Raises the error that fits if it cannot be
        accepted.

        Its place in the queue is free again when this returns: take it before anything is awaited.
        """
        arrival_s = self._clock()
        served = self._first_pass(ask)
        with self._places.admitting(ask.tenant, ask.n):
            admitted = self._second_pass(arrival_s, await self._tokenize(ask, served))
            for choice in admitted.choices:
                await retrace(choice)
        self._readiness.check()  # all this took time: the server may be stopping
        return admitted

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt. Holds a place in the queue while it works. Raises as `admit`."""
        # Nothing is drawn, so the prompt may take the whole context.
        ask = Ask(model, prompt, max_tokens=0, prompt_logprobs=0, tool_choice=ToolChoice("text"))
        served = self._first_pass(ask)
        with self._places.admitting(DEFAULT_TENANT):
            prompt_ids = (await self._tokenize(ask, served)).prompt
        self._readiness.check()
        return prompt_ids

    async def about(self, model: str) -> AboutModel:
        """What a client may want to know of a model. Raises NotFound, NotServable."""
        served = self._models.accepting(model)
        text = await self._models.text(served)
        said = text.facts
        return AboutModel(
            served.facts,
            said.can_chat,
            said.stop_token_ids,
            served.whole().embedding,
        )

    def _first_pass(self, ask: Ask) -> ServedModel:
        """The model, if it takes requests and this request is well formed so far."""
        self._readiness.check()
        served = self._models.accepting(ask.model)
        check_choices(ask.n, self._max_choices)
        check_parameters(ask, served.facts)
        return served

    async def _tokenize(self, ask: Ask, served: ServedModel) -> Tokenized:
        """The prompt as encoded by the model's tokenizer, after the first pass, and what its output obeys."""
        said = ask
        while True:
            text = await self._models.text(served)
            ask, use = tool_use_of(said, served.facts.id, text.facts)
            check_text_length(ask.prompt, served.facts, text.facts.longest_token_chars)
            prompt = await self._token_ids(served, text, ask.prompt)
            if ask.truncate_prompt_tokens is not None:
                prompt = prompt[-ask.truncate_prompt_tokens :]
            words = await self._word_tokens(served, text, ask.bad_words)
            grammar = await self._grammar(ask, use, served, text)
            if self._models.accepts(served):
                return Tokenized(ask, use, served, text, prompt, words, grammar)
            # Another checkpoint under the same name has another vocabulary: start over.
            served = self._first_pass(said)

    async def _grammar(
        self, ask: Ask, use: ToolUse | None, served: ServedModel, text: ModelText
    ) -> Grammar | None:
        """What the output must obey."""
        if ask.constraint is None:
            return None
        try:
            check_constraint(ask)
            check_can_end(ask, served.facts, text.facts.stop_token_ids)
            return await self._grammars.read(ask.constraint)
        except InvalidRequest as error:
            if use is not None and use.is_forced and error.named == "constraint":
                error.field = "tools"
            raise

    def _second_pass(self, arrival_s: float, tokenized: Tokenized) -> Admitted:
        ask, served, prompt = tokenized.ask, tokenized.served, tokenized.prompt
        facts = served.facts
        max_tokens = output_limit(ask, prompt, facts, self._defaults)
        check_token_ids("tokens of the prompt", prompt, facts, field="prompt")
        n_steps = max(1, max_tokens)  # without a token to draw, the last one of the prompt is a step too
        self._devices.check_request(facts, len(prompt) + n_steps, self._models.pinned())
        end_token_ids = frozenset() if ask.ignore_end_tokens else tokenized.text.facts.stop_token_ids
        submit = Submit(
            request=Request(
                id=RequestId(f"{ask.request_id}/{secrets.token_hex(4)}"),
                model=facts.id,
                n_prompt=len(prompt),
                max_tokens=n_steps,
                arrival_s=arrival_s,
                service=service_level(ask, self._defaults),
                tenant=ask.tenant,
                weight=ask.weight * self._weights.of_model(facts.id),
                tenant_weight=self._weights.of_tenant(ask.tenant),
                expires_s=inf if ask.timeout_s is None else arrival_s + ask.timeout_s,
            ),
            prompt=prompt,
            sampling=Sampling(
                ask.temperature,
                min(ask.top_k, facts.vocab_size),
                ask.top_p,
                self._draw_seed() if ask.seed is None else ask.seed,
                ask.min_p,
                logit_rules(ask, tokenized.bad_words, facts),
                None if ask.logprobs is None else min(ask.logprobs, facts.vocab_size),
            ),
            min_tokens=ask.min_tokens,
            stop_token_ids=end_token_ids.union(ask.stop_token_ids),
            n_prompt_likeliest=(
                None if ask.prompt_logprobs is None else min(ask.prompt_logprobs, facts.vocab_size)
            ),
            grammar=tokenized.grammar,
            prefix_cache=ask.prefix_cache,
            cache_salt=ask.cache_salt,
            pooling=ask.pooling,
            draws=max_tokens > 0,
        )
        self._pace.check(submit.request, ask.timeout_s)
        choices = tuple(
            AdmittedChoice(
                number,
                _as_choice(submit, number, held),
                tokenized.text.detokenizer(
                    ask.stop_strings, prompt=prompt, skip_special_tokens=ask.skip_special_tokens
                ),
                _call_reader(tokenized, submit, number),
            )
            for number, held in enumerate(ask.delivered or (NONE_DELIVERED,) * ask.n)
            if not held.is_complete
        )
        info = PromptInfo(ask.request_id, facts.id, len(prompt), max_tokens, submit.sampling.seed, prompt)
        return Admitted(served, info, choices, _echo(ask, tokenized), ask.include_stop_string)

    async def _token_ids(self, served: ServedModel, text: ModelText, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, TokenIds):
            return tuple(prompt.ids)
        return tuple(await self._encoded(served, text, prompt))

    async def _word_tokens(
        self, served: ServedModel, text: ModelText, bad_words: tuple[str, ...]
    ) -> tuple[tuple[int, ...], ...]:
        if not bad_words:
            return ()
        words = Words(tuple(spellings(bad_words)))
        return words.split(await self._encoded(served, text, words))

    async def _encoded(self, served: ServedModel, text: ModelText, prompt: Encodable) -> Sequence[int]:
        try:
            return await self._encoder.encode(served.name, served.path, text.facts, prompt)
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a native library; gRPC would never answer
            raise InternalError(f"the tokenizer of {served.name} failed: {error!r}") from error


def _as_choice(submit: Submit, number: int, held: Delivered) -> Submit:
    """The request of a choice: all of it is the same but its id, its draws and what its client holds. The
    first one tells of the prompt, before its output."""
    if not number and not held.token_ids:
        return submit
    request, sampling = submit.request, submit.sampling
    return replace_fields(
        submit,
        request=replace(request, id=choice_id(request.id, number), n_resumed=len(held.token_ids)),
        sampling=sampling._replace(seed=choice_seed(sampling.seed, number)),
        delivered=tuple(held.token_ids),
        n_prompt_likeliest=None,
    )


def _call_reader(tokenized: Tokenized, submit: Submit, number: int) -> CallReader | None:
    """What reads calls in a choice. Its name makes their ids differ within a conversation, whose prompts
    grow, and between requests, but not if the same is sent again."""
    if tokenized.use is None:
        return None
    name = f"{tokenized.ask.request_id}/{submit.sampling.seed}/{len(submit.prompt)}/{number}"
    return CallReader(tokenized.use, name)


def _echo(ask: Ask, tokenized: Tokenized) -> str:
    """The prompt as text, if it is to come before the output."""
    if not ask.echo:
        return ""
    if isinstance(ask.prompt, Text) and ask.truncate_prompt_tokens is None:
        return ask.prompt.text
    return tokenized.text.decode(tokenized.prompt, skip_special_tokens=ask.skip_special_tokens)
