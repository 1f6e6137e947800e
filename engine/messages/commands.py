"""Commands: what the front asks of a node, each sent as an `Order` with a ticket."""

from typing import NewType

from msgspec import Struct

from tokenmux.core.facts import FIRST_INSTANCE, InstanceId, ModelFacts, ModelId
from tokenmux.core.grammar import Grammar
from tokenmux.core.pooling import PoolingKind
from tokenmux.core.record import NO_HISTORY, RequestHistory
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.setups import DeviceSetup

Ticket = NewType("Ticket", int)
"""Identifies a command: its answer, if it has one, carries the same."""


class Submit(Struct, frozen=True, array_like=True, tag=True):
    """An accepted request with its content; its output obeys `grammar`, if there is one. After a node broke:
    `delivered` are the tokens that exist, and `history` is what the request brings along.

    `n_prompt_likeliest` asks for the log-probability of each token of the prompt but the first, and for those
    of that many likeliest ones there; None asks for none. Without `prefix_cache`, the request neither takes
    nor leaves KV in the prefix cache; otherwise it shares KV with requests of the same `cache_salt` alone.
    With `pooling`, sums of hidden states of its prompt are told. If it does not draw, it ends with its
    prompt; `request.max_tokens` is then 1, since the scheduler counts the step that would draw.
    """

    request: Request
    prompt: tuple[int, ...]
    sampling: Sampling
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    delivered: tuple[int, ...] = ()
    history: RequestHistory = NO_HISTORY
    n_prompt_likeliest: int | None = None
    grammar: Grammar | None = None
    prefix_cache: bool = True
    cache_salt: str | None = None
    pooling: PoolingKind | None = None
    draws: bool = True


class Cancel(Struct, frozen=True, array_like=True, tag=True):
    """End a request now and free what it holds. Answered by `Finished`."""

    request: RequestId
    reason: FinishReason = FinishReason.CANCELLED


class Pause(Struct, frozen=True, array_like=True, tag=True):
    """The client has stopped reading: the request stops being runnable, and its deadlines stop."""

    request: RequestId


class Resume(Struct, frozen=True, array_like=True, tag=True):
    """Resume this request's deadlines: the client reads again."""

    request: RequestId


class Register(Struct, frozen=True, array_like=True, tag=True):
    """Make a model known to the node. `path` is the folder of its catalogue entry."""

    facts: ModelFacts
    path: str


class Unregister(Struct, frozen=True, array_like=True, tag=True):
    """Forget a model. Its live requests fail. Refused with `InUse` while something is under way with it."""

    model: ModelId


class Load(Struct, frozen=True, array_like=True, tag=True):
    """Make a model resident although no request waits for it."""

    model: ModelId


class Unload(Struct, frozen=True, array_like=True, tag=True):
    """Take a model off the device. Its requests, if any, are paged out and bring it back when it is their
    turn."""

    model: ModelId


class Pin(Struct, frozen=True, array_like=True, tag=True):
    """Keep a model resident, or let it leave again with `pinned=False`."""

    model: ModelId
    pinned: bool


class Resize(Struct, frozen=True, array_like=True, tag=True):
    """Reallocate a device's arena with `arena_bytes`, once it is empty; then requests go on. Answered when
    that is done."""

    arena_bytes: int
    instance: InstanceId = FIRST_INSTANCE


class AddDevice(Struct, frozen=True, array_like=True, tag=True):
    """Add a device to the pool. Answered by `Acknowledged` with its `instance` when it serves, or with the
    reason why it cannot."""

    device: DeviceSetup


class DrainDevice(Struct, frozen=True, array_like=True, tag=True):
    """Place nothing on a device any longer, and move its requests to others. Answered when it is empty. Its
    pins move too; refused if a pinned model finds no room elsewhere. `undo` lets it serve again."""

    instance: InstanceId
    undo: bool = False


class RemoveDevice(Struct, frozen=True, array_like=True, tag=True):
    """Drain a device, then end its executor and give up its memory. Answered when that is done."""

    instance: InstanceId


class AskTrace(Struct, frozen=True, array_like=True, tag=True):
    """Return the spans that ended within the last `last_s` seconds; answered by `Traced`."""

    last_s: float


class Shutdown(Struct, frozen=True, array_like=True, tag=True):
    """Stop the node once it has answered. Live requests are handed back unchanged."""


ModelCommand = Register | Unregister | Load | Unload | Pin
DeviceCommand = AddDevice | DrainDevice | RemoveDevice | Resize

Command = (
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
    | AddDevice
    | DrainDevice
    | RemoveDevice
    | AskTrace
    | Shutdown
)


class Order(Struct, frozen=True, array_like=True):
    """One message to a node."""

    ticket: Ticket
    command: Command
