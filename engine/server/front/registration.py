"""Which models are served: those in the store at the start, and those that operators add and remove.

The order of steps is such that a command that fails, or is abandoned half-way, leaves nothing behind.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tokenmux.core.errors import AlreadyExists, DoesNotFit, InUse, InvalidRequest, NotFound, TokenmuxError
from tokenmux.core.facts import ModelId
from tokenmux.core.model_names import model_name_fault
from tokenmux.core.progress import Progress
from tokenmux.messages.commands import Register, Unregister
from tokenmux.server.front.cancellation import Cancellation
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.model_store import ModelStore, NothingToRemove, PendingRemoval
from tokenmux.server.front.names import check_name_length
from tokenmux.server.front.node_side import NodeSide
from tokenmux.server.front.pool_devices import PoolDevices
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.sources import add_to_store
from tokenmux.server.front.undertakings import Undertakings

logger = logging.getLogger(__name__)

FORCED_S = 60.0
"""How long a forced removal waits for the operations in flight that use the model."""
ASK_AGAIN_S = 0.5
AT_ONCE = 2
"""Models that are converted at the same time; others wait."""


class Registration:
    """Registers and removes models; see the module."""

    def __init__(
        self,
        store: ModelStore,
        models: ServedModels,
        devices: PoolDevices,
        node: NodeSide,
        undertakings: Undertakings,
        changes: Changes,
    ) -> None:
        self._store = store
        self._models = models
        self._devices = devices
        self._node = node
        self._changes = changes
        self._undertakings = undertakings
        self._adding: set[str] = set()
        self._removing: set[str] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def open_store(self, pinned: Collection[str]) -> None:
        """Take in every model of the store; `pinned` names those to pin.

        Models that are damaged or do not fit are listed as refused. Raises DoesNotFit if none fits.
        """
        for served in await asyncio.to_thread(self._stored):
            served.pinned = served.name in pinned
            try:
                if served.refusal is None:
                    self._devices.check_model(served.facts, ())
            except DoesNotFit as error:
                served.refusal = error
            if served.refusal is not None:
                logger.warning("%s is refused: %s", served.name, served.refusal)
            self._models.add(served)
        refusals = [served.refusal for served in self._models if isinstance(served.refusal, DoesNotFit)]
        if refusals and len(refusals) == len(self._models):
            raise DoesNotFit(f"no model of the catalogue fits a device; for one: {refusals[0]}")

    def register(
        self, name: str, source: str, progress: Progress, cancellation: Cancellation
    ) -> Coroutine[Any, Any, ServedModel]:
        """Convert, check and serve a model; without a source, serve one that is already in the store (it was
        pulled). Returns the work, to be awaited; it is completed even if the caller leaves.

        Raises InvalidRequest and AlreadyExists at once, and the work NotFound (no such source),
        BadCheckpoint, NotServable, and WorkCancelled, with nothing kept.
        """
        check_name_length(name)
        fault = model_name_fault(name)
        if fault is not None:
            raise InvalidRequest(fault, field="name")
        if name in self._adding:
            raise AlreadyExists(f"a model named {name!r} is being registered at this moment")
        self._check_not_removed(name)
        if name in self._models:
            raise AlreadyExists(
                f"a model named {name!r} is served already: unregister it first (`tokenmux models remove`), "
                "or choose another name"
            )
        self._adding.add(name)
        return self._undertakings.complete(
            self._add(name, source, progress, cancellation), f"register {name}"
        )

    async def unregister(self, name: str, *, force: bool = False) -> None:
        """Stop serving a model and delete its converted files.

        Raises InUse while it is being removed already, and, unless forced, while it has live requests.
        Forced, it waits for operations in flight that use the model, such as a fetch. Its files go first, and
        come back if the node does not let the model go: a failure leaves everything as it was.
        """
        self._check_not_removed(name)
        served = self._models.find(name)
        n_live = self._node.requests.n_of(ModelId(served.name))
        if n_live and not force:
            raise InUse(f"{name!r} has {n_live} live requests: wait for them, or force it to end them")
        self._removing.add(name)
        try:
            await self._remove(name, served, force=force)
        finally:
            self._removing.discard(name)

    async def _remove(self, name: str, served: ServedModel, *, force: bool) -> None:
        removal = await asyncio.to_thread(self._set_aside, name)
        self._models.remove(name)
        self._models.leaving.append(served)
        try:
            if served.refusal is None:
                await self._let_go(served, force=force)
                self._node.dismiss(served)
        except BaseException:
            self._models.add(served)
            await asyncio.to_thread(removal.restore)
            raise
        finally:
            self._models.leaving.remove(served)
            self._changes.notify()
        await asyncio.to_thread(removal.delete)

    def check_fit(self, served: ServedModel) -> None:
        """Raise DoesNotFit if no device can ever hold the model beside the pinned ones."""
        self._devices.check_model(served.facts, self._models.pinned())

    def reconsider(self) -> None:
        """The pool has other devices: serve models that were refused for their size if they fit now."""
        for served in self._models:
            if isinstance(served.refusal, DoesNotFit):
                try:
                    self.check_fit(served)
                except DoesNotFit as error:
                    served.refusal = error
                else:
                    served.refusal = None
                    self._node.introduce(served)
        self._changes.notify()

    def _stored(self) -> list[ServedModel]:
        """The models in the store. A damaged entry is refused, and does not affect the others."""
        found = []
        for name in self._store.names():
            try:
                found.append(ServedModel(self._store.get(name)))
            except TokenmuxError as error:
                found.append(ServedModel(None, refusal=error, name=name))
        return found

    async def _add(
        self, name: str, source: str, progress: Progress, cancellation: Cancellation
    ) -> ServedModel:
        try:
            return await self._added(name, source, progress, cancellation)
        finally:
            self._adding.discard(name)

    async def _added(
        self, name: str, source: str, progress: Progress, cancellation: Cancellation
    ) -> ServedModel:
        if source:
            async with self._turn(cancellation):
                entry = await asyncio.to_thread(
                    add_to_store, self._store, name, Path(source), progress, cancellation
                )
        else:
            entry = await asyncio.to_thread(self._store.get, name)
        served = ServedModel(entry)
        try:
            cancellation.check()
            self.check_fit(served)
            await self._node.command(Register(entry.facts, str(entry.path)))
        except BaseException:
            if source:
                await asyncio.to_thread(self._store.remove, name)
            raise
        self._models.add(served)
        self._changes.notify()
        return served

    @asynccontextmanager
    async def _turn(self, cancellation: Cancellation) -> AsyncIterator[None]:
        """Wait until fewer than `AT_ONCE` models are being converted. Raises WorkCancelled."""
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        turn = asyncio.ensure_future(self._turns.acquire())
        asked = asyncio.ensure_future(heard.wait())
        try:
            with cancellation.tells(lambda: loop.call_soon_threadsafe(heard.set)):
                await asyncio.wait((turn, asked), return_when=asyncio.FIRST_COMPLETED)
            cancellation.check()
            yield
        finally:
            asked.cancel()
            if turn.done() and not turn.cancelled():
                self._turns.release()
            else:
                turn.cancel()

    def _check_not_removed(self, name: str) -> None:
        """Two removals at once, or a registration in between, would each undo what the other did."""
        if name in self._removing:
            raise InUse(f"{name!r} is being removed at this moment: try again when that is done")

    def _set_aside(self, name: str) -> PendingRemoval:
        try:
            return self._store.set_aside(name)
        except NotFound:  # it was deleted from outside; the model goes all the same
            return NothingToRemove()

    async def _let_go(self, served: ServedModel, *, force: bool) -> None:
        """Make the node forget the model. Raises InUse; if forced, only after `FORCED_S`."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + FORCED_S
        while True:
            version = self._changes.version
            try:
                await self._node.command(Unregister(served.facts.id))
            except NotFound:  # another node has come meanwhile, which was not told of it
                return
            except InUse:
                left_s = until_s - loop.time()
                if not force or left_s <= 0:
                    raise
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changes.after(version), min(left_s, ASK_AGAIN_S))
            else:
                return
