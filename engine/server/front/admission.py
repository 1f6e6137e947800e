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

from msgspec.structs import replace as replace_fields

from tokenmux.core.errors import InternalError
from tokenmux.core.request import DEFAULT_TENANT, Request, RequestId
from tokenmux.core.sampling import Sampling, choice_seed
from tokenmux.messages.commands import Submit
from tokenmux.server.front.api_keys import Key, tenant_of
from tokenmux.server.front.call import choice_id
from tokenmux.server.front.counts import check_token_ids
from tokenmux.server.front.generation import AboutModel, Ask, Encodable, Prompt, Text, TokenIds, Words
from tokenmux.server.front.model_text import ModelText, OutputText, PromptEncoder
from tokenmux.server.front.pool_devices import PoolDevices
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


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt between the two passes."""

    served: ServedModel
    text: ModelText
    prompt: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    """The tokens of the words that the output must not contain."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Requests that may go to a node, one for each choice, each with the detokenizer of its output, and the
    text that comes before it. If an output is ended by a stop string, the string is left out, or comes last
    if it is `includes_stop`."""

    served: ServedModel
    choices: tuple[tuple[Submit, OutputText], ...]
    echo: str
    includes_stop: bool


class Admission:
    """Admits requests; see the module. Everything runs on the event loop."""

    def __init__(
        self,
        models: ServedModels,
        encoder: PromptEncoder,
        devices: PoolDevices,
        places: QueuePlaces,
        readiness: Readiness,
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
        self._devices = devices
        self._places = places
        self._readiness = readiness
        self._defaults = defaults
        self._weights = weights
        self._max_choices = max_choices
        self._clock = clock
        self._draw_seed = draw_seed

    async def admit(self, ask: Ask, caller: Key | None = None) -> Admitted:
        """Admit a request of `caller`. Raises the error that fits if it cannot be accepted.

        Its place in the queue is free again when this returns: take it before anything is awaited.
        """
        arrival_s = self._clock()
        ask = replace(ask, tenant=tenant_of(caller, ask.tenant))
        tenant = ask.tenant or DEFAULT_TENANT
        tokenized = await self._tokenize(ask, tenant)
        return self._second_pass(ask, tenant, arrival_s, tokenized)

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt. Holds a place in the queue while it works. Raises as `admit`."""
        return (await self._tokenize(Ask(model, prompt), DEFAULT_TENANT)).prompt

    async def about(self, model: str) -> AboutModel:
        """What a client may want to know of a model. Raises NotFound, NotServable."""
        served = self._models.accepting(model)
        text = await self._models.text(served)
        return AboutModel(served.facts, text.facts.can_chat, text.facts.stop_token_ids)

    def _first_pass(self, ask: Ask) -> ServedModel:
        """The model, if it takes requests and this request is well formed so far."""
        served = self._models.accepting(ask.model)
        check_choices(ask.n, self._max_choices)
        check_parameters(ask, served.facts)
        return served

    async def _tokenize(self, ask: Ask, tenant: str) -> Tokenized:
        """The first pass, then the prompt as encoded by the model's tokenizer."""
        self._readiness.check()
        served = self._first_pass(ask)
        with self._places.admitting(tenant, ask.n):
            while True:
                text = await self._models.text(served)
                check_text_length(ask.prompt, served.facts, text.facts.longest_token_chars)
                prompt = await self._token_ids(served, text, ask.prompt)
                if ask.truncate_prompt_tokens is not None:
                    prompt = prompt[-ask.truncate_prompt_tokens :]
                words = await self._word_tokens(served, text, ask.bad_words)
                if self._models.accepts(served):
                    break
                # Another checkpoint under the same name has another vocabulary: start over.
                served = self._first_pass(ask)
        self._readiness.check()  # tokenizing took time: the server may be stopping
        return Tokenized(served, text, prompt, words)

    def _second_pass(self, ask: Ask, tenant: str, arrival_s: float, tokenized: Tokenized) -> Admitted:
        served, prompt = tokenized.served, tokenized.prompt
        facts = served.facts
        max_tokens = output_limit(ask, prompt, facts, self._defaults)
        check_token_ids("tokens of the prompt", prompt, facts, field="prompt")
        self._devices.check_request(facts, len(prompt) + max_tokens, self._models.pinned())
        end_token_ids = frozenset() if ask.ignore_end_tokens else tokenized.text.facts.stop_token_ids
        submit = Submit(
            request=Request(
                id=RequestId(ask.request_id or secrets.token_hex(8)),
                model=facts.id,
                n_prompt=len(prompt),
                max_tokens=max_tokens,
                arrival_s=arrival_s,
                service=service_level(ask, self._defaults),
                tenant=tenant,
                weight=ask.weight * self._weights.of_model(facts.id),
                tenant_weight=self._weights.of_tenant(tenant),
            ),
            prompt=prompt,
            sampling=Sampling(
                ask.temperature,
                ask.top_k,
                ask.top_p,
                self._draw_seed() if ask.seed is None else ask.seed,
                ask.min_p,
                logit_rules(ask, tokenized.bad_words, facts),
                None if ask.logprobs is None else min(ask.logprobs, facts.vocab_size),
            ),
            min_tokens=ask.min_tokens,
            stop_token_ids=end_token_ids.union(ask.stop_token_ids),
        )
        choices = tuple(
            (
                submit if not choice else _as_choice(submit, choice),
                tokenized.text.detokenizer(
                    ask.stop_strings, prompt=prompt, skip_special_tokens=ask.skip_special_tokens
                ),
            )
            for choice in range(ask.n)
        )
        return Admitted(served, choices, _echo(ask, tokenized), ask.include_stop_string)

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


def _as_choice(submit: Submit, choice: int) -> Submit:
    """The request of another choice: all of it is the same but its id and its draws."""
    sampling = submit.sampling
    return replace_fields(
        submit,
        request=replace(submit.request, id=choice_id(submit.request.id, choice)),
        sampling=sampling._replace(seed=choice_seed(sampling.seed, choice)),
    )


def _echo(ask: Ask, tokenized: Tokenized) -> str:
    """The prompt as text, if it is to come before the output."""
    if not ask.echo:
        return ""
    if isinstance(ask.prompt, Text) and ask.truncate_prompt_tokens is None:
        return ask.prompt.text
    return tokenized.text.decode(tokenized.prompt, skip_special_tokens=ask.skip_special_tokens)
