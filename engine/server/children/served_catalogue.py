"""The catalogue as a server uses it: models are registered in child processes, and those that cannot be
served are kept with the reason.

This process reads nothing of a checkpoint but what registration wrote: facts, text facts, the decoder. A
child that is silent for too long, or takes too much memory, is killed, and its leftovers are deleted.
"""

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmux.core.errors import NotServable, TokenmuxError, Unavailable, WorkCancelled
from tokenmux.core.facts import BLOCK_TOKENS
from tokenmux.core.progress import Progress
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.catalogue.stored_entries import SetAside, StoredEntries
from tokenmux.server.children.child import Child, ChildAnswer, ChildEnded, LimitExceeded
from tokenmux.server.front.cancellation import Cancellation
from tokenmux.server.front.model_store import NothingToRemove
from tokenmux.server.front.sources import kind_of

REGISTRATION_MODULE = "tokenmux.server.children.registration_child"
_AT_ONCE = 2
_SLOWEST_BYTES_PER_S = 50e6
"""At least this much of a checkpoint is converted per second of processor time."""

RegistrationJob = tuple[str, str, Path]
"""`folder`, `gguf` or `refresh`, the model's name, its source."""


@dataclass(frozen=True, slots=True)
class RegistrationLimits:
    """Limits of registering one model."""

    memory_bytes: int = 6 << 30
    """Memory of the child process; while it converts, three times the weights are added."""
    silent_s: float = 300.0
    """Processor time without any progress; large checkpoints get more."""
    trial_s: float = 5.0
    """Processor time for loading its tokenizer, encoding a sentence and rendering a greeting."""


class ServedCatalogue:
    """A `ModelStore` over child processes; see the module. Its methods block: call them from threads."""

    def __init__(
        self,
        root: Path,
        limits: RegistrationLimits | None = None,
        *,
        block_size: int = BLOCK_TOKENS,
        module: str = REGISTRATION_MODULE,
    ) -> None:
        self.root = root
        self.limits = limits or RegistrationLimits()
        self._disk = StoredEntries(root, block_size=block_size)
        self._block_size = block_size
        self._module = module
        self._refusals: dict[str, TokenmuxError] = {}
        self._turns = threading.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._children: set[Child] = set()
        self._closed = False

    def names(self) -> list[str]:
        """Names of all entries, including those that cannot be served."""
        return sorted({*self._disk.names(), *self._refusals})

    def get(self, name: str) -> Entry:
        """The entry, protected from removal by others. Raises NotFound, BadCheckpoint, or the reason why
        it could not be registered."""
        if name in self._refusals and name not in self._disk.names():
            raise self._refusals[name]
        self._disk.claim(name)
        return self._disk.get(name)

    def entries(self) -> list[Entry]:
        """Entries that can be read."""
        found = []
        for name in self._disk.names():
            with suppress(TokenmuxError):
                found.append(self._disk.get(name))
        return found

    def register_folder(
        self, name: str, folder: Path, *, progress: Progress, cancellation: Cancellation | None = None
    ) -> Entry:
        """As `tokenmux.models.catalogue.catalogue.Catalogue.register_folder`, in a child process,
        which is killed on cancellation."""
        return self._register(("folder", name, folder), progress, cancellation)

    def register_gguf(
        self, name: str, file: Path, *, progress: Progress, cancellation: Cancellation | None = None
    ) -> Entry:
        """The same for a GGUF file."""
        return self._register(("gguf", name, file), progress, cancellation)

    def set_aside(self, name: str) -> SetAside | NothingToRemove:
        """Take an entry out of the catalogue; nothing is deleted yet. Raises NotFound, InUse,
        TokenmuxError."""
        if self._refusals.pop(name, None) is not None and name not in self._disk.names():
            return NothingToRemove()
        return self._disk.set_aside(name)

    def remove(self, name: str) -> None:
        """Delete an entry. Raises as `set_aside`."""
        self.set_aside(name).delete()

    def bring_in(
        self, sources: Iterable[tuple[str, Path]], progress: Progress
    ) -> Mapping[str, TokenmuxError]:
        """Register models, by name and source, with one child process. Refused models stay listed; returns
        them with the reasons.

        Entries of an earlier version are updated on the way.
        """
        self._disk.sweep()
        work = [
            ("refresh", name, self.root / "models" / name)
            for name in self._disk.names()
            if self._is_stale(name)
        ]
        for name, source in sources:
            try:
                work.append((kind_of(source), name, source))
            except TokenmuxError as reason:
                self._refusals[name] = reason
        while work:
            results = self._carry_out(work, progress, Cancellation())
            for _, name, _ in work[: len(results)]:
                error = results[name]
                if error is not None:
                    self._refusals[name] = error
            work = work[len(results) :]
        return dict(self._refusals)

    def close(self) -> None:
        """Kill registrations that are under way. Returns at once."""
        with self._lock:
            self._closed = True
            children, self._children = self._children, set()
        for child in children:
            _end(child)

    def _is_stale(self, name: str) -> bool:
        try:
            self._disk.get(name)
        except TokenmuxError:
            return True
        return False

    def _register(
        self, work: RegistrationJob, progress: Progress, cancellation: Cancellation | None
    ) -> Entry:
        _, name, _ = work
        error = self._carry_out([work], progress, cancellation or Cancellation())[name]
        if error is not None:
            raise error
        self._refusals.pop(name, None)
        return self.get(name)

    def _carry_out(
        self, work: list[RegistrationJob], progress: Progress, cancellation: Cancellation
    ) -> dict[str, TokenmuxError | None]:
        """Do the first jobs, up to one that the child does not survive. Returns each model's error, or
        None."""
        with self._turns:
            return asyncio.run(self._ask(work, progress, cancellation))

    async def _ask(
        self, work: list[RegistrationJob], progress: Progress, cancellation: Cancellation
    ) -> dict[str, TokenmuxError | None]:
        results: dict[str, TokenmuxError | None] = {}
        last = "starting"

        def heard(header: dict[str, Any]) -> None:
            nonlocal last
            if "result" in header:
                results[str(header["name"])] = _error_in(header["result"])
                return
            what, done, total = header["progress"]
            last = str(what)
            progress(last, int(done), int(total))

        limit_s = self.limits.silent_s + max(map(_size_of, work)) / _SLOWEST_BYTES_PER_S
        header = {
            "root": str(self.root),
            "block_size": self._block_size,
            "trial_s": self.limits.trial_s,
            "memory_bytes": self.limits.memory_bytes,
            "work": [[kind, name, str(source)] for kind, name, source in work],
        }
        child = await Child.start(self._module, memory_bytes=self.limits.memory_bytes)
        with self._lock:
            self._children.add(child)
        try:
            if self._closed:
                raise Unavailable("the server has stopped")
            with cancellation.tells(lambda: _end(child)):
                (await child.ask(header, limit_s=limit_s, progress=heard)).checked()
        except (LimitExceeded, ChildEnded, NotServable) as error:  # the last without memory to say of which
            _, name, source = work[len(results)]
            if self._closed:
                results[name] = Unavailable("the server has stopped")
            elif cancellation.asked:
                results[name] = WorkCancelled(f"registering {name} was cancelled")
            elif isinstance(error, LimitExceeded):
                results[name] = NotServable(
                    f"{source}: no progress in {limit_s:g} s of computing ({last}); "
                    "`registration.silent_s` allows more"
                )
            else:
                results[name] = NotServable(
                    f"{source}: {error} ({last}); it may use {self.limits.memory_bytes >> 20} MiB "
                    "besides three times the "
                    "weights (`registration.memory`)"
                )
            self._disk.sweep()
        else:
            for _, name, source in work:
                results.setdefault(name, NotServable(f"{source}: its registration was not answered"))
        finally:
            with self._lock:
                self._children.discard(child)
            child.kill()
        return results


def _end(child: Child) -> None:
    """Kill a child, from any thread. The thread that asked it hears that it ended."""
    with suppress(OSError):
        os.kill(child.pid, 9)


def _error_in(result: object) -> TokenmuxError | None:
    try:
        ChildAnswer(
            result if isinstance(result, dict) else {"error": "", "message": "no answer"}, b""
        ).checked()
    except TokenmuxError as error:
        return error
    return None


def _size_of(work: RegistrationJob) -> int:
    """Bytes of a source, as far as known."""
    _, _, source = work
    try:
        if source.is_dir():
            return sum(path.stat().st_size for path in source.glob("*.safetensors"))
        return source.stat().st_size
    except OSError:
        return 0
