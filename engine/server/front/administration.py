"""What operators do with models: register, remove, load, unload, pin; what they do with the pool: resize; and
what they are shown.

The front keeps the roster and speaks to the worker; here is the order in which things have to happen so that
a half-done command leaves nothing behind.
"""

import asyncio
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenmux.core.errors import (
    AlreadyExists,
    BadCheckpoint,
    Ended,
    InUse,
    InvalidRequest,
    NotFound,
    Unavailable,
    WorkerFailed,
)
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.model_names import MODEL_NAME
from tokenmux.core.phases import Residency
from tokenmux.core.progress import Progress, no_progress
from tokenmux.messages.commands import Load, Pin, Register, Resize, Unload, Unregister
from tokenmux.messages.reports import ModelStatus, ModelUse
from tokenmux.server.front.front import Front
from tokenmux.server.front.model_store import ModelStore, PendingRemoval, StoredModel
from tokenmux.server.front.names import check_name_length
from tokenmux.server.front.pending_commands import OperatorCommand
from tokenmux.server.front.served_models import ServedModel

FORCED_S = 60.0
"""How long a forced removal waits for what is under way with the model."""
ASK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class ShownModel:
    """One model as an operator sees it. `status` and `use` are None while the worker has not reported on
    it."""

    facts: ModelFacts | None
    """None for one that could not be read."""
    pinned: bool
    refusal: str
    status: ModelStatus | None
    use: ModelUse | None
    name: str = ""
    """Taken from the facts unless there are none."""

    def __post_init__(self) -> None:
        if self.facts is not None:
            object.__setattr__(self, "name", self.facts.id)


def add_to_catalogue(
    catalogue: ModelStore, name: str, source: Path, progress: Progress = no_progress
) -> StoredModel:
    """Convert what lies at `source`, a folder of safetensors or a GGUF file. May take minutes.

    Raises NotFound, and what `Catalogue.register_folder` raises.
    """
    if kind_of(source) == "folder":
        return catalogue.register_folder(name, source, progress=progress)
    return catalogue.register_gguf(name, source, progress=progress)


def kind_of(source: Path) -> Literal["folder", "gguf"]:
    """What lies at `source`. Raises NotFound, too for what is no path or may not be looked at."""
    said = str(source)
    said = said if len(said) <= 200 else f"{said[:200]}..."
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError) as error:
        reason = (
            "" if isinstance(error, FileNotFoundError) else f" ({getattr(error, 'strerror', None) or error})"
        )
        raise NotFound(f"{said}: there is no such folder or file on the server{reason}") from None
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "gguf"
    raise NotFound(f"{said}: neither a folder nor a file")


class Gone:
    """Set aside in the place of files that are no longer there."""

    def restore(self) -> None: ...

    def delete(self) -> None: ...


class Administration:
    """See the module. All methods raise NotFound for a model that is not known, Unavailable without a
    worker."""

    def __init__(self, front: Front, catalogue: ModelStore) -> None:
        self._front = front
        self._catalogue = catalogue
        self._adding: dict[str, asyncio.Task[ShownModel]] = {}
        self._resizing: asyncio.Task[None] | None = None

    def models(self) -> list[ShownModel]:
        """All of them, by name."""
        status = self._front.worker_status
        told = {} if status is None else {model.model: model for model in status.models}
        return [self._view_with(served, told.get(ModelId(served.name))) for served in self._front.models]

    def model(self, name: str) -> ShownModel:
        return self._view(self._front.models.find(name))

    async def register(self, name: str, source: str) -> ShownModel:
        """Convert, check and serve a model; without a source, serve one that the catalogue has already (it
        was pulled).

        Goes on to its end even when whoever asked has left. Raises InvalidRequest, AlreadyExists, NotFound
        (no such source), BadCheckpoint, NotServable.
        """
        check_name_length(name)
        if not MODEL_NAME.fullmatch(name):
            raise InvalidRequest(
                f"{name!r} is not a model name: use letters, digits and . _ -, beginning with a letter "
                "or digit, "
                "at most 128 characters"
            )
        if name in self._adding:
            raise AlreadyExists(f"a model named {name!r} is being registered at this moment")
        if name in self._front.models:
            raise AlreadyExists(
                f"a model named {name!r} is served already: unregister it first, or choose another name"
            )
        task = asyncio.create_task(self._add(name, source), name=f"register {name}")
        self._adding[name] = task
        task.add_done_callback(lambda _: self._adding.pop(name))
        return await asyncio.shield(task)

    async def _add(self, name: str, source: str) -> ShownModel:
        if source:
            entry = await asyncio.to_thread(add_to_catalogue, self._catalogue, name, Path(source))
        else:
            entry = await asyncio.to_thread(self._catalogue.get, name)
        served = ServedModel(entry)
        try:
            self._front.check_fit(served)
            await self._command(Register(entry.facts, str(entry.path)))
        except BaseException:
            if source:
                await asyncio.to_thread(self._catalogue.remove, name)
            raise
        self._front.models.add(served)
        self._front.changes.notify()
        return self._view(served)

    async def unregister(self, name: str, *, force: bool = False) -> None:
        """Stop serving a model and delete its converted files. Raises InUse while requests are live, unless
        forced; forced, it waits for what is under way with the model, such as a fetch.

        Its files go first, and come back when the worker does not let the model go: what fails leaves
        everything as it was.
        """
        served = self._front.models.find(name)
        n_live = self._front.n_live_of(ModelId(served.name))
        if n_live and not force:
            raise InUse(f"{name!r} has {n_live} live requests: wait for them, or force it to end them")
        aside = await asyncio.to_thread(self._set_aside, name)
        self._front.models.remove(name)
        try:
            if served.refusal is None:
                await self._let_go(served, force=force)
        except BaseException:
            self._front.models.add(served)
            await asyncio.to_thread(aside.restore)
            raise
        finally:
            self._front.changes.notify()
        await asyncio.to_thread(aside.delete)

    def _set_aside(self, name: str) -> PendingRemoval:
        try:
            return self._catalogue.set_aside(name)
        except NotFound:  # somebody deleted it; the model is to go all the same
            return Gone()

    async def _let_go(self, served: ServedModel, *, force: bool) -> None:
        """Have the worker forget the model. Raises InUse, when forced only once `FORCED_S` were not
        enough."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + FORCED_S
        while True:
            version = self._front.changes.version
            try:
                await self._command(Unregister(served.facts.id))
            except InUse:
                left_s = until_s - loop.time()
                if not force or left_s <= 0:
                    raise
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._front.changes.after(version), min(left_s, ASK_AGAIN_S))
            else:
                return

    async def load(self, name: str, *, wait: bool = False) -> ShownModel:
        """Make a model resident; with `wait`, return only when it is.

        Raises DoesNotFit when there is no room beside what is pinned. While it waits: BadCheckpoint when the
        weights cannot be read, Ended when another operator wants it off the device, NotFound when it is
        removed, WorkerFailed when the worker breaks.
        """
        served = self._front.models.accepting(name)
        self._front.check_fit(served)
        await self._command(Load(served.facts.id))
        version, n_restarts = self._front.changes.version, self._front.n_restarts
        while wait:
            served = self._front.models.accepting(name)
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

    async def unload(self, name: str) -> ShownModel:
        """Take a model off the device."""
        served = self._front.models.accepting(name)
        await self._command(Unload(served.facts.id))
        return self._view(served)

    async def pin(self, name: str, *, pinned: bool) -> ShownModel:
        """Keep a model resident, or no longer. Raises NotServable when the pinned ones would leave no
        room."""
        served = self._front.models.accepting(name)
        await self._command(Pin(served.facts.id, pinned))
        served.pinned = pinned
        self._front.changes.notify()
        return self._view(served)

    async def resize(self, arena_bytes: int) -> int:
        """Give the pool so much device memory, once everything in it has left; returns what it has then.

        Requests wait meanwhile, and go on. Goes on to its end even when whoever asked has left. Raises
        InvalidRequest, InUse while another resize is going on, DoesNotFit when what is served would not fit,
        or when the device has not so much.
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

    async def _command(self, command: OperatorCommand) -> None:
        if not self._front.worker_running:
            raise Unavailable("there is no worker at this moment: try again when `pool status` shows one")
        await self._front.commands.begin(command)

    def _view(self, served: ServedModel) -> ShownModel:
        status = self._front.worker_status
        models = () if status is None else status.models
        own = next((model for model in models if model.model == served.name), None)
        return self._view_with(served, own)

    def _view_with(self, served: ServedModel, status: ModelStatus | None) -> ShownModel:
        return ShownModel(
            facts=None if served.entry is None else served.facts,
            pinned=served.pinned,
            refusal="" if served.refusal is None else str(served.refusal),
            status=status,
            use=self._front.usage.models.get(ModelId(served.name)),
            name=served.name,
        )
