"""Everything that a dialect calls: the gRPC services do, and an HTTP gateway would.

A dialect translates: its messages to the values of `tokenmux.server.front.generation`, results into its
messages, and errors of `tokenmux.core.errors` to its status codes. It decides nothing itself.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tokenmux.core.facts import InstanceId, ModelFacts
from tokenmux.server.front.api_keys import ApiKeys, Key
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.device_source import WantedDevice
from tokenmux.server.front.embeddings import EmbedAsk, Embedded
from tokenmux.server.front.generation import AboutModel, Ask, Prompt, StreamEvent
from tokenmux.server.front.long_operations import OperationView
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.server_totals import ServerTotals
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.front.trace_document import TraceDocument
from tokenmux.workload.trace import Trace


class FrontService(Protocol):
    """The front's methods. They raise errors of the error tree; those about a model raise NotFound if
    there is no such model."""

    @property
    def keys(self) -> ApiKeys:
        """API keys: a dialect checks the caller before it reads a call."""
        ...

    # Requests

    def open(
        self, ask: Ask, caller: Key | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Admit a request and yield its stream of events. Leaving the context early cancels the request.

        With `n` choices, their events stand in one stream, each with its choice; `PromptInfo` and states come
        once. If one choice fails, the call does, and the others are cancelled.

        `caller` is the key that the call carries, if any: its name is the tenant.

        The stream raises Ended, DeadlineExceeded, ProcessFailed or Unavailable if an accepted request could
        not be completed. Raises AlreadyExists if the tenant has a live request with the same id.
        """
        ...

    async def embed(self, ask: EmbedAsk, caller: Key | None = None) -> Sequence[Embedded]:
        """The embeddings of all inputs, in order. Cancelling this ends their requests at once.

        Raises InvalidRequest if the model makes none, or if an input or the dimensions are wrong, and as the
        stream of `open`.
        """
        ...

    def cancel(self, request_id: str, caller: Key | None = None, tenant: str = "") -> None:
        """End a live request of the caller's tenant by its id. An administrator may end those of `tenant`, or
        (if that is empty) of every tenant that uses the id. Raises UnknownRequest."""
        ...

    async def tokenize(self, model: str, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt."""
        ...

    async def about_model(self, name: str) -> AboutModel:
        """What a client may want to know of a model."""
        ...

    # Health

    @property
    def ready(self) -> bool:
        """True if requests are accepted, a device serves or will in a moment, and something moves if any of
        them wait."""
        ...

    @property
    def changes(self) -> Changes:
        """Notified when readiness, or anything below, may have changed."""
        ...

    def model_ready(self, name: str) -> bool:
        """True if requests for this model are accepted."""
        ...

    def knows_model(self, name: str) -> bool:
        """True if a model of that name is served, or listed as refused. Raises InvalidRequest for one that
        cannot be a name."""
        ...

    def model_names(self) -> Sequence[str]:
        """Names of all models, including refused ones."""
        ...

    # Models, for operators

    def list_models(self) -> Sequence[ShownModel]:
        """All models, by name."""
        ...

    def show_model(self, name: str) -> ShownModel: ...

    def register(self, name: str, source: str) -> OperationView:
        """Begin to convert, check and serve what lies at `source`; if that is empty, a model that was pulled
        before. Raises InvalidRequest, AlreadyExists, Overloaded; what else goes wrong is the operation's
        error."""
        ...

    def list_operations(self) -> Sequence[OperationView]:
        """Those under way and the last that ended, the newest first."""
        ...

    def show_operation(self, name: str) -> OperationView:
        """Raises NotFound, like the next two."""
        ...

    def watch_operation(self, name: str) -> AsyncGenerator[OperationView, None]:
        """The operation now and after each change, until it has ended."""
        ...

    def cancel_operation(self, name: str) -> None:
        """Ask an operation to end, with nothing left behind."""
        ...

    async def unregister(self, name: str, *, force: bool = False) -> None:
        """Stop serving a model and delete its converted files. Raises InUse while it has requests, unless
        forced."""
        ...

    async def load(self, name: str, *, wait: bool = False) -> ShownModel:
        """Load a model onto the device; with `wait`, return only when it is there."""
        ...

    async def unload(self, name: str) -> ShownModel:
        """Take a model off the device."""
        ...

    async def pin(self, name: str, *, pinned: bool) -> ShownModel:
        """Keep a model on the device, or let it leave again."""
        ...

    # The pool, for operators

    async def add_device(self, wanted: WantedDevice) -> InstanceId:
        """Add a device to the pool. Returns its number once it serves."""
        ...

    async def drain_device(self, instance: int, *, undo: bool = False) -> None:
        """Place nothing on a device any longer, and return when it is empty; with `undo`, let it serve
        again."""
        ...

    async def remove_device(self, instance: int) -> None:
        """Drain a device and take it out of the pool."""
        ...

    async def resize(self, arena_bytes: int, instance: int | None = None) -> int:
        """Give a device (if there is only one, that one) an arena of `arena_bytes`. Returns the size
        afterwards."""
        ...

    def status(self) -> PoolSnapshot:
        """The present status. Several callers at the same moment may get the same object."""
        ...

    def totals(self) -> ServerTotals:
        """What was counted since the server began, whichever node did. Costs little, and is summed by its
        reader."""
        ...

    def watch_status(self, min_interval_s: float) -> AbstractAsyncContextManager[AsyncIterator[PoolSnapshot]]:
        """A stream of statuses: one now, then one after each change."""
        ...

    async def trace(self, last_s: float) -> TraceDocument:
        """What the node did within the last `last_s` seconds; 0 for everything that it remembers."""
        ...

    # Planning

    def model_facts(self) -> Sequence[ModelFacts]:
        """The sizes of all models that could be read."""
        ...

    def recorded_traffic(self, last_s: float) -> Trace:
        """Recorded requests that arrived within the last `last_s` seconds; 0 for all. Raises ConfigError if
        nothing is recorded."""
        ...
