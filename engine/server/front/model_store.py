"""What the front needs of the models on disk, as Protocols.

`tokenmux.server.children.served_catalogue` implements the store over `tokenmux.models.catalogue`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenmux.core.facts import ModelFacts
from tokenmux.core.pooling import Embedding
from tokenmux.core.progress import Progress
from tokenmux.server.front.cancellation import Cancellation
from tokenmux.server.front.model_text import ModelText


class StoredModel(Protocol):
    """A model of the catalogue: converted, checked and ready to be registered with a node."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def path(self) -> Path:
        """The folder with its manifest and tokenizer."""
        ...

    @property
    def embedding(self) -> Embedding:
        """How the model makes embeddings, or why it does not."""
        ...

    def tokenizer(self) -> ModelText:
        """Load the tokenizer; may take a second. Raises BadCheckpoint."""
        ...


class PendingRemoval(Protocol):
    """An entry on its way out of the catalogue."""

    def restore(self) -> None:
        """Put the entry back. Raises TokenmuxError."""
        ...

    def delete(self) -> None: ...


class NothingToRemove:
    """The `PendingRemoval` of files that are no longer there, or never were."""

    def restore(self) -> None: ...

    def delete(self) -> None: ...


class ModelStore(Protocol):
    """The models on disk. Its methods may block for long and are called from threads."""

    def names(self) -> Sequence[str]: ...

    def get(self, name: str) -> StoredModel:
        """The entry of a model. Raises NotFound or BadCheckpoint."""
        ...

    def register_folder(
        self, name: str, folder: Path, *, progress: Progress, cancellation: Cancellation
    ) -> StoredModel:
        """Convert a checkpoint and keep it. Raises AlreadyExists, NotFound, BadCheckpoint,
        UnsupportedModel, DoesNotFit; and WorkCancelled, soon after that was asked for, with nothing kept."""
        ...

    def register_gguf(
        self, name: str, file: Path, *, progress: Progress, cancellation: Cancellation
    ) -> StoredModel:
        """The same for a GGUF file."""
        ...

    def set_aside(self, name: str) -> PendingRemoval:
        """Take a model's files out of the catalogue, to be deleted or restored; the source stays.

        Raises NotFound, InUse if another server serves it, and TokenmuxError if the disk refuses.
        """
        ...

    def remove(self, name: str) -> None:
        """Set it aside and delete it."""
        ...
