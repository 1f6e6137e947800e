"""Options of a generation, besides model and prompt."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class GenerateOptions(TypedDict, total=False):
    """If an option is left out or None, the server's default applies."""

    max_tokens: int | None
    """Most tokens to generate. Prompt and output together must fit the model's context. 0, together with
    `prompt_logprobs` or `echo`: score or repeat the prompt, and generate nothing."""
    min_tokens: int
    """Nothing ends the generation before it has this many tokens."""
    temperature: float | None
    """0, the default, is greedy."""
    top_k: int | None
    """Draw among the k likeliest tokens; 0: no limit."""
    top_p: float | None
    """Draw among the likeliest tokens that together have this probability."""
    seed: int | None
    """The same seed gives the same tokens. By default the server draws one and reports it."""
    min_p: float | None
    """Draw among tokens that are at least this times as likely as the likeliest one; 0: no limit."""
    repetition_penalty: float | None
    """Divide (below 0: multiply) the logits of tokens in prompt and output by this; 1: no penalty."""
    frequency_penalty: float | None
    """Subtract this from a token's logit for each time that it was drawn, -2 to 2."""
    presence_penalty: float | None
    """Subtract this once from the logits of tokens that were drawn, -2 to 2."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these token ids, each -100 to 100."""
    forbidden_token_ids: Sequence[int]
    """Tokens that are never drawn."""
    bad_words: Sequence[str]
    """Texts that the output must not contain."""
    n: int | None
    """How many outputs to generate, by default 1. The first is the one that there would be without."""
    logprobs: int | None
    """Return log-probabilities of the tokens, and of this many likeliest ones each, at most 20."""
    prompt_logprobs: int | None
    """The same for the tokens of the prompt."""
    json_schema: str | Mapping[str, object] | None
    """The output is a JSON document that meets this schema. At most one of this and the next four."""
    json_object: bool
    """The output is a JSON object."""
    regex: str | None
    """The whole output matches this regular expression."""
    grammar: str | None
    """The output is a sentence of this grammar, in the format of Lark or GBNF."""
    choice: Sequence[str] | None
    """The output is one of these strings."""
    stop: str | Sequence[str]
    """Texts that end the generation; they are not returned."""
    include_stop_string: bool
    """Return the text with the stop string that ended it."""
    stop_token_ids: Sequence[int]
    ignore_end_tokens: bool
    """Continue past the model's own end tokens."""
    echo: bool
    """Begin the text with that of the prompt."""
    keep_special_tokens: bool
    """Show special tokens in the text."""
    truncate_prompt_tokens: int | None
    """Keep only this many tokens of the prompt, the last ones. By default a prompt that is too long is
    refused."""
    request_id: str
    """An id of your own, which no live request may have."""
    tools: Sequence[Mapping[str, object]]
    """Tools that the model may call in a conversation, as OpenAI describes them."""
    tool_choice: str | Mapping[str, Any] | None
    """"auto" (the default), "none", "required", "text" (calls stay in the text), or a tool that must be
    called: {"type": "function", "function": {"name": ...}}."""
    parallel_tool_calls: bool | None
    """False: leave out calls after the first."""
    documents: Sequence[Mapping[str, object]]
    """Documents for the template of a conversation."""
    chat_template_kwargs: Mapping[str, object]
    """Further arguments of the template of a conversation."""
    continue_final_message: bool
    """Continue the last message of a conversation, which must be the assistant's."""
    ttft_s: float | None
    """Seconds within which the first token is due."""
    tpot_s: float | None
    """Seconds for each later token."""
    prefix_cache: bool
    """False: neither take KV of the prompt from the prefix cache nor leave it there."""
    cache_salt: str | None
    """Share KV of the prompt only with requests that have the same salt, 1 to 256 characters."""
    tenant: str
    weight: float | None
    """Weight relative to others; higher is sooner."""
