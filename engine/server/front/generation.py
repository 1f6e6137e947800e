"""What a client asks of the front and what it gets back, as values, independent of any wire format.

The gRPC servicers translate to and from these; another front end (an HTTP dialect) would do the same.
Everything here is as the client said it: `tokenmux.server.front.request_rules` says what is acceptable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenmux.core.facts import ModelFacts
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.request import FinishReason, RequestId


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as text, to be tokenized with the model's own special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt as token ids, taken as they are."""

    ids: Sequence[int]
    """As they came, since there may be a million of them: copied once their number has been found
    acceptable."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt as a conversation, to be put through the model's own template."""

    messages: tuple[ChatMessage, ...]


Prompt = Text | TokenIds | Chat


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation as its client asked for it. None means: not said, take the server's default."""

    model: str
    prompt: Prompt
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_end_tokens: bool = False
    ttft_s: float | None = None
    tpot_s: float | None = None
    tenant: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PromptInfo:
    """What the front made of an `Ask`: the first event of every stream."""

    request: RequestId
    model: str
    n_prompt: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """New output. Text may lag behind the token ids: half a character, or what may become a stop string,
    is held back."""

    index: int
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class FinishInfo:
    """The last event of a stream that ended well. Times are seconds since the request arrived."""

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


@dataclass(frozen=True, slots=True)
class AboutModel:
    """What a client may want to know of a model. `can_chat`: its template takes a conversation."""

    facts: ModelFacts
    can_chat: bool
    end_token_ids: frozenset[int]


StreamEvent = PromptInfo | PhaseChanged | TokenDelta | FinishInfo
