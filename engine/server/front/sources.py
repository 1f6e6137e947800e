"""What lies at the path that an operator names as a model's source, and how it gets into the store."""

import stat
from pathlib import Path
from typing import Literal

from tokenmux.core.errors import NotFound
from tokenmux.core.progress import Progress, no_progress
from tokenmux.server.front.cancellation import Cancellation
from tokenmux.server.front.model_store import ModelStore, StoredModel

MAX_SHOWN_CHARS = 200
"""Most characters of a path in an error."""


def add_to_store(
    store: ModelStore,
    name: str,
    source: Path,
    progress: Progress = no_progress,
    cancellation: Cancellation | None = None,
) -> StoredModel:
    """Convert what lies at `source`, a folder of safetensors or a GGUF file. May take minutes.

    Raises NotFound, and what `ModelStore.register_folder` raises.
    """
    cancellation = cancellation or Cancellation()
    if kind_of(source) == "folder":
        return store.register_folder(name, source, progress=progress, cancellation=cancellation)
    return store.register_gguf(name, source, progress=progress, cancellation=cancellation)


def kind_of(source: Path) -> Literal["folder", "gguf"]:
    """What lies at `source`. Raises NotFound, also if it is not a path or may not be read."""
    said = str(source)
    said = said if len(said) <= MAX_SHOWN_CHARS else f"{said[:MAX_SHOWN_CHARS]}..."
    try:
        mode = source.stat().st_mode
    except FileNotFoundError:
        raise NotFound(f"{said}: there is no such folder or file on the server") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NotFound(f"{said}: there is no such folder or file on the server ({reason})") from None
    if stat.S_ISDIR(mode):
        return "folder"
    if stat.S_ISREG(mode):
        return "gguf"
    raise NotFound(f"{said}: neither a folder nor a file")
