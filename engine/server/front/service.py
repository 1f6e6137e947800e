"""Everything that a dialect calls. gRPC's services do, and an HTTP gateway would.

A dialect translates: its messages to the values of `tokenmux.server.front.generation`, what comes back
into its messages, and errors of `tokenmux.core.errors` to its status codes. It takes no decision of its
own.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tokenmux.core.facts import ModelFacts
from tokenmux.core.span import Span
from tokenmux.server.front.api_keys import ApiKeys
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.generation import AboutModel, Ask, Prompt, StreamEvent
from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.workload.trace import Trace


class FrontService(Protocol):
    """All methods raise what the error tree has; those about a model raise NotFound if there is none of
    that name."""

    @property
    def keys(self) -> ApiKeys:
        """Who may call what: a dialect asks before it reads a call."""
        ...

    # Requests

    def open(self, ask: Ask) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Admit a request and yield its stream of events; leaving the context early cancels it.

        The stream raises Ended, WorkerFailed or Unavailable if an accepted request could not be completed.
        """
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
        """True if requests are accepted and there is a worker, or will be in a moment."""
        ...

    @property
    def changes(self) -> Changes:
        """Notified when anything below, or readiness, may have changed."""
        ...

    def model_ready(self, name: str) -> bool:
        """True if requests for this model are accepted."""
        ...

    def knows_model(self, name: str) -> bool:
        """True if a model of that name is served, or listed as refused. Raises InvalidRequest for one that
        cannot be a name."""
        ...

    def model_names(self) -> Sequence[str]:
        """Of all models, those that are refused included."""
        ...

    # Models, for operators

    def list_models(self) -> Sequence[ShownModel]:
        """All of them, by name."""
        ...

    def show_model(self, name: str) -> ShownModel: ...

    async def register(self, name: str, source: str) -> ShownModel:
        """Convert, check and serve what lies at `source`; if it is empty, a model that was pulled before."""
        ...

    async def unregister(self, name: str, *, force: bool = False) -> None:
        """Stop serving a model and delete its converted files. Raises InUse while it has requests, unless
        forced."""
        ...

    async def load(self, name: str, *, wait: bool = False) -> ShownModel:
        """Make a model resident; with `wait`, return only when it is."""
        ...

    async def unload(self, name: str) -> ShownModel:
        """Take a model off the device."""
        ...

    async def pin(self, name: str, *, pinned: bool) -> ShownModel:
        """Keep a model resident, or no longer."""
        ...

    # The pool, for operators

    async def resize(self, arena_bytes: int) -> int:
        """Give the pool another size; returns the one that it has then."""
        ...

    def status(self) -> PoolSnapshot:
        """The pool now. The same object may be returned to several who ask at the same moment."""
        ...

    def watch_status(self, min_interval_s: float) -> AbstractAsyncContextManager[AsyncIterator[PoolSnapshot]]:
        """A stream of statuses: one now, then one after each change."""
        ...

    async def trace(self, last_s: float) -> tuple[Span, ...]:
        """What the worker did within the last `last_s` seconds; 0 for all that it remembers."""
        ...

    # Planning

    def model_facts(self) -> Sequence[ModelFacts]:
        """The sizes of all models that could be read."""
        ...

    def recorded_traffic(self, last_s: float) -> Trace:
        """Recorded requests that arrived within the last `last_s` seconds; 0 for all. Raises ConfigError if
        nothing is recorded."""
        ...
