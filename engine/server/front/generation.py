"""Questions and answers between clients and the front, as values, independent of any wire format.

Dialects such as the gRPC services translate to and from these. Everything is as the client said it:
`tokenmux.server.front.request_rules` says what is acceptable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tokenmux.core.facts import ModelFacts
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.pooling import Embedding, PoolingKind
from tokenmux.core.request import FinishReason
from tokenmux.core.sampling import LogProbabilities


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as text, to be tokenized with the model's own special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt as token ids, used unchanged."""

    ids: Sequence[int]
    """In the client's own container, since there may be a million: copied only once their number has been
    accepted."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message of a conversation. `fields` are further ones that a template may know, such as
    `tool_calls`."""

    role: str
    content: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt as a conversation, to be formatted by the model's own template, which is given `tools`,
    `documents` and further `arguments` as they are.

    With `continue_final_message` the output continues the last message.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Mapping[str, object], ...] = ()
    documents: tuple[Mapping[str, object], ...] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)
    continue_final_message: bool = False


Prompt = Text | TokenIds | Chat

ToolMode = Literal["auto", "none", "required", "text"]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the model calls: any or none ("auto"), one at least ("required"), that of a `name`, or none
    of them, so that its template is not given any ("none"). With "text" the template is given them, and calls
    stay in the text as the model writes them."""

    mode: ToolMode = "auto"
    name: str = ""
    """Only with the mode "required"."""


@dataclass(frozen=True, slots=True)
class Words:
    """Texts to be tokenized one by one, without special tokens. An encoder answers with the number of tokens
    of each text before them."""

    texts: tuple[str, ...]

    @staticmethod
    def split(answer: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The tokens of each text in an encoder's answer."""
        found, at = [], 0
        while at < len(answer):
            end = at + 1 + answer[at]
            found.append(tuple(answer[at + 1 : end]))
            at = end
        return tuple(found)


Encodable = Text | Chat | Words

ConstraintKind = Literal["json_schema", "json_object", "regex", "grammar", "choice"]

_TITLES: Mapping[str, str] = {
    "json_schema": "the JSON schema",
    "json_object": "the constraint to a JSON object",
    "regex": "the regular expression",
    "grammar": "the grammar",
    "choice": "the choice of strings",
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output must obey: `text` is a JSON schema, a regular expression, a grammar (Lark or GBNF) or a
    JSON list of strings, as its kind says; "json_object" needs none."""

    kind: ConstraintKind
    text: str

    @property
    def title(self) -> str:
        """Its name in errors."""
        return _TITLES[self.kind]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a client holds of one choice that it asked for before: the first tokens of its output, in the
    client's own container, or all of it."""

    token_ids: Sequence[int] = ()
    is_complete: bool = False


NONE_DELIVERED = Delivered()


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation as its client asked for it. None means that the client did not say: use the server's
    default."""

    model: str
    prompt: Prompt
    n: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    forbidden_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    tool_choice: ToolChoice | None = None
    several_calls: bool = True
    """If false, calls after the first are left out."""
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    max_tokens: int | None = None
    """0: draw nothing, and end with the prompt."""
    min_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end_tokens: bool = False
    include_stop_string: bool = False
    skip_special_tokens: bool = True
    echo: bool = False
    constraint: Constraint | None = None
    truncate_prompt_tokens: int | None = None
    request_id: str = ""
    delivered: tuple[Delivered, ...] = ()
    """What the client holds of each choice, if it has asked before: the rest is wanted."""
    timeout_s: float | None = None
    """How long the client waits for the whole output, from now."""
    ttft_s: float | None = None
    tpot_s: float | None = None
    tenant: str = ""
    weight: float = 1.0
    prefix_cache: bool = True
    """True if KV of the prompt may come from earlier requests, and go to later ones."""
    cache_salt: str | None = None
    """Only requests with the same one share KV."""
    pooling: PoolingKind | None = None
    """Return pooled hidden states of the prompt: `tokenmux.server.front.embeddings` asks so."""


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """What the front made of an `Ask`: the first event of every stream. `prompt` are its token ids."""

    request: str
    model: str
    n_prompt: int
    max_tokens: int
    seed: int
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptDelta:
    """Tokens of the prompt, the first of them at `index`, with their log-probabilities: None for the first
    token of all. If they were asked for, they come in order, before the first `TokenDelta` with tokens.
    `spellings` has the id and the bytes of every token in them."""

    index: int
    token_ids: tuple[int, ...]
    log_probabilities: tuple[LogProbabilities | None, ...]
    spellings: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class CallStart:
    """The name of the tool that is called, and an id of the call's own."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call of a tool, or a piece of one, and its place among the calls of the output. Only the first piece
    has a `start`; arguments follow each other."""

    index: int
    start: CallStart | None
    arguments: str


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New output. Text lags behind the token ids: half a character, or a possible stop string or call of a
    tool, is held back. Log-probabilities, one for each token id, are there if they were asked for, and
    `spellings` then has the id and the bytes of every token in them."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    log_probabilities: tuple[LogProbabilities, ...] = ()
    choice: int = 0
    spellings: tuple[tuple[int, bytes], ...] = ()
    calls: tuple[PlacedCall, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishInfo:
    """The last event of a choice that ended successfully; the stream ends with that of its last choice. Times
    are seconds since the request arrived.

    `n_resumed` of the tokens came with the request; they count neither as on time nor as late. `n_cached`
    tokens of the prompt were given to the choice by the prefix cache and not computed for it, up to its first
    token here. `vector` has the pooled hidden states of the prompt if they were asked for, neither shortened
    nor normalised. `called` is true if the output has calls of tools. `loading_s` is how long the request
    waited while its model's weights were on their way."""

    reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    n_prompt: int
    n_completion: int
    n_on_time: int
    queue_s: float
    ttft_s: float
    total_s: float
    seed: int
    choice: int = 0
    n_resumed: int = 0
    n_cached: int = 0
    vector: tuple[float, ...] = ()
    called: bool = False
    loading_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AboutModel:
    """What a client may want to know of a model. `can_chat` is true if its template takes a conversation.
    `embedding` is how it makes embeddings, or why it does not."""

    facts: ModelFacts
    can_chat: bool
    end_token_ids: frozenset[int]
    embedding: Embedding


StreamEvent = PromptInfo | PhaseChanged | PromptDelta | TokenDelta | FinishInfo
