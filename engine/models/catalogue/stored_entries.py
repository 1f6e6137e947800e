"""The models that are ready to be served: a folder with one subfolder each.

    <root>/models/<name>/
        manifest.json        what the weight image holds, and the file it is in
        weights.image        the image, unless the checkpoint's own file serves as it
        config.json, generation_config.json, and the author's code where that is trusted
        entry.json           what the operator said at registration, the model's facts and pooling
        text.json, encoder.json, decoder.json   its tokenizer and chat template (`text_files.py`)

It imports neither torch nor transformers: a server reads, claims and removes entries in its own process, and
has others make them (`catalogue.py`).
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tokenmux.core.errors import DoesNotFit, InUse, InvalidRequest, NotFound, TokenmuxError
from tokenmux.core.facts import BLOCK_TOKENS
from tokenmux.core.model_names import MODEL_NAME, model_name_fault
from tokenmux.models.atomic_files import DISK_FULL
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.catalogue.locks import Claim, alone_in, is_free


@dataclass(frozen=True, slots=True)
class SetAside:
    """An entry that was taken out of the catalogue and can still be put back."""

    name: str
    entry: Path
    aside: Path
    claim: Claim
    """Claims the folder in which the entry lies, so that no sweep deletes it before its fate is decided."""

    def restore(self) -> None:
        """Put the entry back. Raises TokenmuxError if the disk refuses."""
        with disk_errors(self.entry.parent):
            self.aside.rename(self.entry)
            self.aside.parent.rmdir()
        self.claim.release()

    def delete(self) -> None:
        """Delete the entry's files. What cannot be deleted now is deleted at the next sweep of a
        catalogue."""
        shutil.rmtree(self.aside.parent, ignore_errors=True)
        self.claim.release()


class StoredEntries:
    """The models under `<root>/models`. Any number of processes may read and remove at the same time."""

    def __init__(self, root: Path, *, block_size: int = BLOCK_TOKENS) -> None:
        self.folder = root / "models"
        self._block_size = block_size
        self._claims: dict[str, Claim] = {}

    def names(self) -> tuple[str, ...]:
        """Names of all entries, sorted."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.folder.iterdir() if MODEL_NAME.fullmatch(p.name)))

    def entries(self) -> tuple[Entry, ...]:
        """All entries, sorted by name. Raises BadCheckpoint for a damaged one."""
        return tuple(self.get(name) for name in self.names())

    def get(self, name: str) -> Entry:
        """The entry `name`. Raises NotFound or BadCheckpoint."""
        return Entry.load(self.folder / checked_name(name), block_size=self._block_size)

    def claim(self, name: str) -> None:
        """Keep other processes from removing the entry while this object lives. Raises NotFound or InUse."""
        if name in self._claims:
            return
        try:
            self._claims[name] = Claim(self.folder / checked_name(name))
        except FileNotFoundError:
            raise NotFound(f"no model named {name} in the catalogue {self.folder}") from None
        except OSError as error:
            raise InUse(
                f"{name} is being removed from the catalogue {self.folder} ({error.strerror})"
            ) from None

    def set_aside(self, name: str) -> SetAside:
        """Take the entry `name` out of the catalogue without deleting anything yet.

        Raises NotFound, InUse if another process serves it, and TokenmuxError if the disk refuses.
        """
        path = self.folder / checked_name(name)
        if not path.is_dir():
            raise NotFound(f"no model named {name} in the catalogue {self.folder}")
        with disk_errors(self.folder), alone_in(self.folder):
            claim = self._claims.pop(name, None)
            if claim is not None:
                claim.release()
            try:
                if not is_free(path):
                    raise InUse(
                        f"{name} is served by another server from the catalogue {self.folder}: stop "
                        "that one first"
                    )
                doomed = Path(tempfile.mkdtemp(prefix=".removed-", dir=self.folder))
                kept = Claim(doomed)
                path.rename(doomed / name)
            except BaseException:
                if claim is not None:
                    self.claim(name)
                raise
        return SetAside(name, path, doomed / name, kept)

    def remove(self, name: str) -> None:
        """Delete the entry `name`, and its image if it has one of its own. Raises as `set_aside`."""
        # Renamed first, so that a deletion that is cut short leaves no half entry under the name.
        self.set_aside(name).delete()

    def sweep(self) -> None:
        """Delete the leftovers of processes that were killed while they registered or removed a model."""
        if not self.folder.is_dir():
            return
        with suppress(OSError), alone_in(self.folder):
            for path in self.folder.iterdir():
                if path.name.startswith(".") and path.is_dir() and is_free(path):
                    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk under `folder` into ones that say what happened, with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DoesNotFit(
                f"{folder}: the disk is full; free some space or choose another folder"
            ) from error
        where = error.filename or folder
        raise TokenmuxError(f"{where}: cannot be written or read ({error.strerror or error})") from error


def checked_name(name: str) -> str:
    """Return the name of a model. Raises InvalidRequest if it is not one."""
    fault = model_name_fault(name)
    if fault is not None:
        raise InvalidRequest(fault)
    return name
