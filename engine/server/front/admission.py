"""From a client's question to what a worker is sent: a place in the queue, the prompt's token ids, every
default filled in.

The checks are in `tokenmux.server.front.request_rules`; here they meet the models and the size of the pool.
Prompts become token ids in child processes, and a request holds a place in the queue meanwhile.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenmux.core.errors import InternalError, Overloaded, TokenmuxError
from tokenmux.core.request import DEFAULT_TENANT, Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Submit
from tokenmux.server.front.generation import AboutModel, Ask, Prompt, TokenIds
from tokenmux.server.front.model_text import ModelText, OutputText, PromptEncoder
from tokenmux.server.front.pool_size import PoolSize
from tokenmux.server.front.request_rules import (
    Defaults,
    check_parameters,
    check_text_length,
    check_token_ids,
    output_limit,
    service_level,
)
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.tenants import Weights, is_full


class Admission:
    """See the module. Everything runs on the event loop."""

    def __init__(
        self,
        models: ServedModels,
        encoder: PromptEncoder,
        size: PoolSize,
        *,
        max_requests: int,
        defaults: Defaults,
        weights: Weights,
        refusal: Callable[[], TokenmuxError | None],
        clock: Callable[[], float],
        draw_seed: Callable[[], int],
    ) -> None:
        """`refusal` says why nothing is accepted at this moment; None: it is."""
        self._models = models
        self._encoder = encoder
        self._size = size
        self._max_requests = max_requests
        self._defaults = defaults
        self._weights = weights
        self._refusal = refusal
        self._clock = clock
        self._draw_seed = draw_seed
        self._held: Counter[str] = Counter()
        """How many live requests each tenant has."""
        self.n_admitting = 0
        """Requests whose prompts are being tokenized."""

    async def submission(self, ask: Ask) -> tuple[Submit, OutputText]:
        """What to send the worker, and what makes text of its answer. Raises what the error tree has for a
        request that cannot be accepted. `take_place` for it before anything is awaited."""
        arrival_s = self._clock()
        tenant = ask.tenant or DEFAULT_TENANT
        self._check_up()
        check_parameters(ask, self._models.accepting(ask.model).facts)
        with self._admitting(tenant):
            served, tokenizer, prompt = await self._encode(ask)
        facts = served.facts
        max_tokens = output_limit(ask, prompt, facts, self._defaults)
        check_token_ids("tokens of the prompt", prompt, facts)
        self._size.check_request(facts, len(prompt) + max_tokens, self._models.pinned())
        end_token_ids = frozenset() if ask.ignore_end_tokens else tokenizer.facts.stop_token_ids
        submit = Submit(
            request=Request(
                id=RequestId(secrets.token_hex(8)),
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
                ask.temperature, ask.top_k, ask.top_p, self._draw_seed() if ask.seed is None else ask.seed
            ),
            min_tokens=ask.min_tokens,
            stop_token_ids=end_token_ids.union(ask.stop_token_ids),
        )
        return submit, tokenizer.detokenizer(ask.stop_strings, prompt=prompt)

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt. It takes a place in the queue meanwhile. Raises as `submission`."""
        with self._admitting(DEFAULT_TENANT):
            _, _, ids = await self._encode(Ask(model, prompt))
            return ids

    async def metadata(self, model: str) -> AboutModel:
        """What a client may want to know of a model. Raises NotFound, NotServable."""
        served = self._models.accepting(model)
        tokenizer = await self._models.tokenizer(served)
        return AboutModel(served.facts, tokenizer.facts.can_chat, tokenizer.facts.stop_token_ids)

    def take_place(self, tenant: str) -> None:
        """A request of this tenant is live."""
        self._held[tenant] += 1

    def give_back_place(self, tenant: str) -> None:
        """It is no longer."""
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]

    def _check_up(self) -> None:
        """Raise Unavailable while requests are not accepted."""
        refusal = self._refusal()
        if refusal is not None:
            raise refusal

    @contextmanager
    def _admitting(self, tenant: str) -> Iterator[None]:
        """Hold a place in the queue while a prompt is tokenized. Raises Overloaded, and why nothing is
        accepted now."""
        self._check_up()
        if is_full(tenant, self._held, self._max_requests, self._weights, self.n_admitting):
            raise Overloaded(f"the queue is full ({self._max_requests} requests): try again in a few seconds")
        self.n_admitting += 1
        try:
            yield
        finally:
            self.n_admitting -= 1
        # Tokenizing took time: the server may be stopping.
        self._check_up()

    async def _encode(self, ask: Ask) -> tuple[ServedModel, ModelText, tuple[int, ...]]:
        """The model, its tokenizer, and the prompt as that tokenizer says it: the model of the name when
        this returns."""
        while True:
            served = self._models.accepting(ask.model)
            check_parameters(ask, served.facts)
            tokenizer = await self._models.tokenizer(served)
            check_text_length(ask.prompt, served.facts, tokenizer.facts.longest_token_chars)
            prompt = await self._token_ids(served, tokenizer, ask.prompt)
            # Another checkpoint under the name has another vocabulary: begin again.
            if self._models.accepting(ask.model) is served:
                return served, tokenizer, prompt

    async def _token_ids(self, served: ServedModel, tokenizer: ModelText, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, TokenIds):
            return tuple(prompt.ids)
        try:
            return tuple(await self._encoder.encode(served.name, served.path, tokenizer.facts, prompt))
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a native library; gRPC would never answer
            raise InternalError(f"the tokenizer of {served.name} failed: {error!r}") from error
