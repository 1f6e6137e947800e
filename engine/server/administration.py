"""What operators do with models: register, remove, load, unload, pin; what they do with the pool: resize; and what they are shown.

The front keeps the roster and speaks to the worker; here is the order in which things have to happen so that a half-done
command leaves nothing behind.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tokenmux.engine.core.errors import (
    AlreadyExists,
    BadCheckpoint,
    Ended,
    InUse,
    InvalidRequest,
    NotFound,
    TokenmuxError,
    Unavailable,
    WorkerFailed,
)
from tokenmux.engine.core.facts import ModelFacts
from tokenmux.engine.core.message import (
    Load,
    ModelStatus,
    ModelUse,
    Pin,
    Register,
    Residency,
    Resize,
    Unload,
    Unregister,
)
from tokenmux.engine.server.commands import Command
from tokenmux.engine.server.front import Front
from tokenmux.engine.server.names import NAME, check_name_length
from tokenmux.engine.server.roster import Served
from tokenmux.engine.server.seams import Catalogue, Entry, Progress


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model as an operator sees it. `status` and `use` are None while the worker has not reported on it."""

    facts: ModelFacts
    pinned: bool
    refusal: str
    status: ModelStatus | None
    use: ModelUse | None


def no_progress(what: str, done: int, total: int) -> None:
    """For conversions that nobody watches."""


def add_to_catalogue(
    catalogue: Catalogue, name: str, source: Path, progress: Progress = no_progress
) -> Entry:
    """Convert what lies at `source`, a folder of safetensors or a GGUF file. May take minutes.

    Raises NotFound, and what `Catalogue.register_folder` raises.
    """
    if source.is_dir():
        return catalogue.register_folder(name, source, progress=progress)
    if source.is_file():
        return catalogue.register_gguf(name, source, progress=progress)
    raise NotFound(f"{source}: there is no such folder or file on the server")


class Administration:
    """See the module. All methods raise NotFound for a model that is not known, Unavailable without a worker."""

    def __init__(self, front: Front, catalogue: Catalogue) -> None:
        self._front = front
        self._catalogue = catalogue
        self._adding: dict[str, asyncio.Task[ModelView]] = {}
        self._resizing: asyncio.Task[None] | None = None

    def models(self) -> list[ModelView]:
        """All of them, by name."""
        status = self._front.worker_status
        told = {} if status is None else {model.model: model for model in status.models}
        return [self._view_with(served, told.get(served.facts.id)) for served in self._front.roster]

    def model(self, name: str) -> ModelView:
        return self._view(self._front.roster.find(name))

    async def register(self, name: str, source: str) -> ModelView:
        """Convert, check and serve a model; without a source, serve one that the catalogue has already (it was pulled).

        Goes on to its end even when whoever asked has left. Raises InvalidRequest, AlreadyExists, NotFound (no such source), BadCheckpoint, NotServable.
        """
        check_name_length(name)
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name!r} is no model name: use letters, digits and . _ -, beginning with a letter or digit, "
                "at most 128 characters"
            )
        if name in self._adding:
            raise AlreadyExists(f"a model named {name!r} is being registered at this moment")
        if name in self._front.roster:
            raise AlreadyExists(
                f"a model named {name!r} is served already: unregister it first, or choose another name"
            )
        task = asyncio.create_task(self._add(name, source), name=f"register {name}")
        self._adding[name] = task
        task.add_done_callback(lambda _: self._adding.pop(name))
        return await asyncio.shield(task)

    async def _add(self, name: str, source: str) -> ModelView:
        if source:
            entry = await asyncio.to_thread(add_to_catalogue, self._catalogue, name, Path(source))
        else:
            entry = await asyncio.to_thread(self._catalogue.get, name)
        served = Served(entry)
        try:
            self._front.check_fit(served)
            await self._command(Register(entry.facts, str(entry.path)))
        except TokenmuxError:
            if source:
                await asyncio.to_thread(self._catalogue.remove, name)
            raise
        self._front.roster.add(served)
        self._front.changes.notify()
        return self._view(served)

    async def unregister(self, name: str, *, force: bool = False) -> None:
        """Stop serving a model and delete its converted files. Raises InUse while requests are live, unless forced."""
        served = self._front.roster.find(name)
        n_live = self._front.n_live_of(served.facts.id)
        if n_live and not force:
            raise InUse(f"{name!r} has {n_live} live requests: wait for them, or force it to end them")
        if served.refusal is None:
            self._front.roster.remove(name)
            try:
                await self._command(Unregister(served.facts.id))
            except TokenmuxError:
                self._front.roster.add(served)
                raise
        self._front.roster.remove(name)
        self._front.changes.notify()
        await asyncio.to_thread(self._catalogue.remove, name)

    async def load(self, name: str, *, wait: bool = False) -> ModelView:
        """Make a model resident; with `wait`, return only when it is.

        Raises DoesNotFit when there is no room beside what is pinned. While it waits: BadCheckpoint when the weights cannot be read, Ended when
        another operator wants it off the device, NotFound when it is removed, WorkerFailed when the worker breaks.
        """
        served = self._front.roster.accepting(name)
        self._front.check_fit(served)
        await self._command(Load(served.facts.id))
        version, n_restarts = self._front.changes.version, self._front.n_restarts
        while wait:
            served = self._front.roster.accepting(name)
            status = self._view(served).status
            if status is not None and status.residency is Residency.RESIDENT:
                break
            if not self._front.worker_running or self._front.n_restarts != n_restarts:
                raise WorkerFailed(f"the worker broke before {name} was resident: load it again")
            if status is not None and status.load_error:
                raise BadCheckpoint(f"{name} could not be loaded: {status.load_error}")
            if status is not None and status.unload_asked:
                raise Ended(
                    f"{name} was unloaded before it was resident: load it again if it is still wanted"
                )
            version = await self._front.changes.after(version)
        return self._view(served)

    async def unload(self, name: str) -> ModelView:
        """Take a model off the device."""
        served = self._front.roster.accepting(name)
        await self._command(Unload(served.facts.id))
        return self._view(served)

    async def pin(self, name: str, *, pinned: bool) -> ModelView:
        """Keep a model resident, or no longer. Raises NotServable when the pinned ones would leave no room."""
        served = self._front.roster.accepting(name)
        await self._command(Pin(served.facts.id, pinned))
        served.pinned = pinned
        self._front.changes.notify()
        return self._view(served)

    async def resize(self, arena_bytes: int) -> int:
        """Give the pool so much device memory, once everything in it has left; returns what it has then.

        Requests wait meanwhile, and go on. Goes on to its end even when whoever asked has left. Raises InvalidRequest, InUse while another
        resize is going on, DoesNotFit when what is served would not fit, or when the device has not so much.
        """
        if arena_bytes < 1:
            raise InvalidRequest("arena_bytes 0: a pool needs memory; give its new size in bytes")
        if self._resizing is not None and not self._resizing.done():
            raise InUse("the pool is being resized at this moment: try again when that is done")
        self._resizing = asyncio.create_task(self._resize(arena_bytes), name="resize")
        await asyncio.shield(self._resizing)
        return self._front.size.arena_bytes

    async def _resize(self, arena_bytes: int) -> None:
        with self._front.size.becoming(arena_bytes):
            await self._command(Resize(arena_bytes))
        self._front.reconsider()

    async def _command(self, command: Command) -> None:
        if not self._front.worker_running:
            raise Unavailable("there is no worker at this moment: try again when `pool status` shows one")
        await self._front.commands.begin(command)

    def _view(self, served: Served) -> ModelView:
        status = self._front.worker_status
        models = () if status is None else status.models
        own = next((model for model in models if model.model == served.facts.id), None)
        return self._view_with(served, own)

    def _view_with(self, served: Served, status: ModelStatus | None) -> ModelView:
        return ModelView(
            facts=served.facts,
            pinned=served.pinned,
            refusal="" if served.refusal is None else str(served.refusal),
            status=status,
            use=self._front.usage.models.get(served.facts.id),
        )
