"""Checks of a request; each raises InvalidRequest that says what to change. Some return the values to use.

`tokenmux.server.front.admission` says when they run, and `tokenmux.server.front.fitting` whether
the pool can hold the request.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenmux.core.errors import ContextExceeded, InvalidRequest
from tokenmux.core.facts import ModelFacts
from tokenmux.core.request import ServiceLevel
from tokenmux.server.front.constraint_rules import check_constraint
from tokenmux.server.front.counts import check_count, check_token_ids
from tokenmux.server.front.delivered_tokens import check_delivered
from tokenmux.server.front.generation import Ask, Chat, Prompt, Text, TokenIds
from tokenmux.server.front.names import tenant_fault
from tokenmux.server.front.sampling_rules import check_sampling

MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
MIN_SECONDS, MAX_SECONDS = 0.001, 86_400.0
"""Bounds of a TTFT, a TPOT or a client's patience: a millisecond to a day."""
MAX_CHAT_MESSAGES = 4096
MAX_CALLS = 1024
"""Calls of tools in one message, each of which is parsed on the event loop."""
MAX_TOOLS = 128
MAX_DOCUMENTS = 128
TEMPLATE_NAMES = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
)
"""What a template gets from other fields."""
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_SALT_CHARS = 256
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True, slots=True)
class Defaults:
    """Values for what a request does not say."""

    max_tokens: int = 256
    service: ServiceLevel = field(default_factory=ServiceLevel)


def check_choices(n: int, limit: int) -> None:
    """Raise InvalidRequest for a number of choices that is not served."""
    if not 1 <= n <= limit:
        raise InvalidRequest(
            f"n {n} is out of range: use 1 to {limit} choices, or several requests, each with its own seed",
            field="n",
        )


def check_parameters(ask: Ask, facts: ModelFacts) -> None:
    """Check everything that does not need token ids. Raises InvalidRequest."""
    match ask.prompt:
        case Text(text):
            if not text:
                raise InvalidRequest(
                    "the prompt is empty: give text, token ids or chat messages", field="prompt"
                )
        case TokenIds(ids):
            if not ids:
                raise InvalidRequest("the prompt has no token ids", field="prompt")
            if ask.truncate_prompt_tokens is None:
                check_prompt_length(len(ids), facts, draws=_draws(ask))
            check_token_ids("prompt token ids", ids, facts, field="prompt")
        case Chat():
            _check_chat(ask.prompt)
    check_sampling(ask, facts)
    check_delivered(ask, facts)
    if not MIN_WEIGHT <= ask.weight <= MAX_WEIGHT:
        raise InvalidRequest(
            f"weight {ask.weight:g} is out of range: use {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, 1 is usual",
            field="weight",
        )
    if ask.truncate_prompt_tokens is not None and ask.truncate_prompt_tokens < 1:
        raise InvalidRequest(
            f"truncate_prompt_tokens {ask.truncate_prompt_tokens} is out of range: use at least 1, or leave "
            "it out to keep the whole prompt"
        )
    if ask.echo and isinstance(ask.prompt, Chat):
        raise InvalidRequest("echo repeats a prompt of text or token ids: leave it out for a chat")
    if ask.request_id and not _REQUEST_ID.fullmatch(ask.request_id):
        raise InvalidRequest(
            "request_id is not a usable id: use 1 to 128 letters, digits, '.', '_', ':' and '-', the first a "
            "letter or digit; or leave it out"
        )
    if ask.cache_salt is not None and not 1 <= len(ask.cache_salt) <= MAX_SALT_CHARS:
        raise InvalidRequest(
            f"the salt of the prefix cache has {len(ask.cache_salt)} characters: use 1 to {MAX_SALT_CHARS}, "
            "which others cannot guess, or leave it out to share with all requests of the tenant",
            field="cache_salt",
        )
    fault = tenant_fault(ask.tenant)
    if fault is not None:
        raise InvalidRequest(fault, field="tenant")
    times = ("ttft_s", ask.ttft_s), ("tpot_s", ask.tpot_s), ("timeout_s", ask.timeout_s)
    for name, seconds in times:
        if seconds is not None and not MIN_SECONDS <= seconds <= MAX_SECONDS:
            raise InvalidRequest(
                f"{name} {seconds:g} is out of range: use seconds, {MIN_SECONDS:g} to {MAX_SECONDS:g}",
                field=name,
            )
    _check_stopping(ask, facts)
    check_constraint(ask)


def _check_chat(chat: Chat) -> None:
    if not chat.messages:
        raise InvalidRequest("the chat has no messages", field="prompt")
    check_count("chat messages", chat.messages, MAX_CHAT_MESSAGES, field="prompt")
    for index, message in enumerate(chat.messages):
        if not message.role:
            said = f"chat message {index} has no role: use system, user or assistant"
            raise InvalidRequest(said, field="prompt")
    if chat.continue_final_message and chat.messages[-1].role != "assistant":
        raise InvalidRequest(
            "continue_final_message continues a message of the assistant, but the last one is of role "
            f"{chat.messages[-1].role!r}: end the chat with an assistant message, or leave it out"
        )
    check_count("tools", chat.tools, MAX_TOOLS, field="tools")
    check_count("documents", chat.documents, MAX_DOCUMENTS, field="documents")
    for name in chat.arguments:
        if name in TEMPLATE_NAMES or not name.isidentifier():
            raise InvalidRequest(
                f"template argument {name!r} cannot be given: use another name; messages, tools, documents "
                "and continue_final_message have fields of their own"
            )


def _check_stopping(ask: Ask, facts: ModelFacts) -> None:
    if ask.max_tokens is not None and ask.max_tokens < 0:
        raise InvalidRequest(
            f"max_tokens {ask.max_tokens} is out of range: use at least 1, 0 to score the prompt, or leave "
            "it out for the default",
            field="max_tokens",
        )
    if ask.max_tokens == 0 and not (ask.echo or ask.prompt_logprobs is not None or ask.pooling):
        raise InvalidRequest(
            "max_tokens 0 draws nothing, and nothing of the prompt is asked for: set echo or prompt_logprobs "
            "too, or use at least 1",
            field="max_tokens",
        )
    if ask.min_tokens < 0:
        raise InvalidRequest(
            f"min_tokens {ask.min_tokens} is negative: use 0 for no minimum", field="min_tokens"
        )
    check_count("stop strings", ask.stop_strings, MAX_STOP_STRINGS, field="stop_strings")
    for stop in ask.stop_strings:
        if not stop:
            raise InvalidRequest(
                "a stop string is empty: it would end every request at once; leave it out",
                field="stop_strings",
            )
        if len(stop) > MAX_STOP_STRING_CHARS:
            raise InvalidRequest(
                f"a stop string has {len(stop)} characters: at most {MAX_STOP_STRING_CHARS} are allowed",
                field="stop_strings",
            )
    check_count("stop token ids", ask.stop_token_ids, MAX_STOP_TOKEN_IDS, field="stop_token_ids")
    check_token_ids("stop token ids", ask.stop_token_ids, facts, field="stop_token_ids")


def check_seconds(name: str, seconds: float) -> None:
    """Raise InvalidRequest unless `seconds` is a time that one can wait or look back."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidRequest(f"{name} {seconds:g}: use seconds, 0 or more")


def check_prompt_length(n_prompt: int, facts: ModelFacts, *, draws: bool) -> None:
    """Raise ContextExceeded for a prompt that is longer than the model's context; or as long, if the request
    `draws`, since a token of output has no room then."""
    limit = facts.max_context - draws
    if n_prompt > limit:
        raise ContextExceeded(
            f"the prompt has {n_prompt} tokens, but {facts.id} has a context of {facts.max_context}"
            f"{', output included' if draws else ''}: shorten the prompt to at most {limit} tokens",
            field="prompt",
            limit=limit,
            given=n_prompt,
            model=facts.id,
        )


def check_text_length(prompt: Prompt, facts: ModelFacts, longest_token_chars: int) -> None:
    """Raise InvalidRequest for text that cannot fit the context, however it is tokenized."""
    match prompt:
        case Text(text):
            n_chars = len(text)
        case Chat(messages=messages):
            n_chars = sum(len(message.content) for message in messages)
        case TokenIds():
            return
    limit = (facts.max_context + 1) * longest_token_chars
    if n_chars > limit:
        raise ContextExceeded(
            f"the prompt has {n_chars} characters, which cannot fit into the context of {facts.id} "
            f"({facts.max_context} tokens of at most {longest_token_chars} characters): shorten it",
            field="prompt",
            limit=facts.max_context - 1,
            model=facts.id,
        )


def output_limit(ask: Ask, prompt: Sequence[int], facts: ModelFacts, defaults: Defaults) -> int:
    """The max_tokens in force. Raises InvalidRequest if prompt and output do not fit the model's context."""
    if not prompt:
        raise InvalidRequest("the prompt is empty once tokenized: give at least one token", field="prompt")
    check_prompt_length(len(prompt), facts, draws=_draws(ask))
    room = facts.max_context - len(prompt)
    if ask.max_tokens is not None and ask.max_tokens > room:
        raise ContextExceeded(
            f"the prompt of {len(prompt)} tokens and max_tokens {ask.max_tokens} exceed the context of "
            f"{facts.id} ({facts.max_context} tokens): use max_tokens of at most {room}",
            field="max_tokens",
            limit=room,
            given=ask.max_tokens,
            model=facts.id,
        )
    limit = min(defaults.max_tokens, room) if ask.max_tokens is None else ask.max_tokens
    if ask.min_tokens > limit:
        raise InvalidRequest(
            f"min_tokens {ask.min_tokens} is more than max_tokens {limit}", field="min_tokens"
        )
    return limit


def _draws(ask: Ask) -> bool:
    """False if the prompt is scored or pooled and nothing is drawn."""
    return ask.max_tokens != 0


def service_level(ask: Ask, defaults: Defaults) -> ServiceLevel:
    """The service level in force: each time is the request's, or otherwise the default."""
    return ServiceLevel(
        ttft_s=defaults.service.ttft_s if ask.ttft_s is None else ask.ttft_s,
        tpot_s=defaults.service.tpot_s if ask.tpot_s is None else ask.tpot_s,
    )
