"""Commands: what the front asks of a worker."""

from dataclasses import dataclass

from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Submit:
    """An accepted request with its content. `delivered` are tokens that the client already has (recovery)."""

    request: Request
    prompt: tuple[int, ...]
    sampling: Sampling
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    delivered: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request now and free what it holds; answered by `Finished`."""

    request: RequestId
    reason: FinishReason = FinishReason.CANCELLED


@dataclass(frozen=True, slots=True)
class Pause:
    """The client does not read: the request stops being runnable, and its deadlines stop."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class Resume:
    """The client reads again."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class Register:
    """Make a model known to the worker. `path` is the folder of its catalogue entry."""

    facts: ModelFacts
    path: str


@dataclass(frozen=True, slots=True)
class Unregister:
    """Forget a model. Its live requests fail; the front has refused new ones before."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Load:
    """Ask that a model be made resident although nobody waits for it."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Unload:
    """Ask that a model leave the device; its requests, if any, are paged out and bring it back in their
    turn."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep a model resident (or no longer, with `pinned=False`)."""

    model: ModelId
    pinned: bool


@dataclass(frozen=True, slots=True)
class Resize:
    """Give the arena another size, once everything in it has left; requests go on afterwards. Answered
    when that is done."""

    arena_bytes: int


@dataclass(frozen=True, slots=True)
class AskTrace:
    """Hand over what is remembered of the last `last_s` seconds; answered by `Traced` with the same
    ticket."""

    ticket: int
    last_s: float


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Stop the worker once it has answered; live requests are handed back as they are."""


ToWorker = (
    Submit
    | Cancel
    | Pause
    | Resume
    | Register
    | Unregister
    | Load
    | Unload
    | Pin
    | Resize
    | AskTrace
    | Shutdown
)
