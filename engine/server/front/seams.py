"""What the front needs from the layers below it, as Protocols, so that it can be tested against scripted
stand-ins.

`tokenmux.executor` implements the worker, `tokenmux.models` the catalogue and its tokenizers,
`tokenmux.scheduler.instance` what is known of capacity.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tokenmux.core.facts import ModelFacts
from tokenmux.core.progress import Progress
from tokenmux.messages.commands import ToWorker
from tokenmux.messages.reports import FromWorker
from tokenmux.models.text.encoder import TextFacts
from tokenmux.server.front.generation import Chat, Text


class Worker(Protocol):
    """A running worker. It answers through the callback that its factory was given, from a thread of its
    own."""

    def send(self, message: ToWorker) -> None:
        """Hand over a message without waiting. Raises WorkerFailed when the worker is gone."""
        ...

    def kill(self) -> None:
        """End it now, whatever it does. `close` it afterwards."""
        ...

    def close(self) -> None:
        """Stop it and free what it holds; may block. Nothing is delivered afterwards. Harmless when it is
        gone already."""
        ...


class WorkerFactory(Protocol):
    """Starts workers."""

    def __call__(self, on_message: Callable[[FromWorker], None], *, arena_bytes: int) -> Worker:
        """Start a worker whose device manages so much memory; may block. It answers through `on_message`."""
        ...


class Capacity(Protocol):
    """What could ever fit on the device, however full it is now."""

    @property
    def arena_bytes(self) -> int: ...

    def resized(self, arena_bytes: int) -> "Capacity":
        """The same with an arena of another size."""
        ...

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when the model can never be served beside the pinned ones."""
        ...

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when one request of so many tokens, prompt and output, can never be."""
        ...


class Detokenizer(Protocol):
    """The text of one output, step by step, cut at the first stop string."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; returns the text that is certain by now. Once `stopped` is set: always
        empty."""
        ...

    def finish(self) -> str:
        """The rest of the text that was held back; no tokens may follow."""
        ...

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, if one did."""
        ...


class Tokenizer(Protocol):
    """What the front needs of a model's tokenizer; turning prompts into token ids is `Texts`' part."""

    @property
    def facts(self) -> TextFacts: ...

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens with which the model itself ends its output."""
        ...

    def detokenizer(self, stop: Sequence[str], *, prompt: Sequence[int]) -> Detokenizer:
        """For one output that continues `prompt` and ends at the first of the stop strings."""
        ...


class Texts(Protocol):
    """Prompts to token ids. Used from the event loop, which it never blocks."""

    async def encode(self, model: str, path: Path, facts: TextFacts, prompt: Text | Chat) -> Sequence[int]:
        """Token ids of a prompt by the tokenizer of the entry in folder `path`; `model` names it in errors.

        Raises InvalidRequest, NotServable when it exceeds the limits, Overloaded when its turn did not come
        in time.
        """
        ...

    def close(self) -> None:
        """End what is going on. Waits for nothing."""
        ...


class Entry(Protocol):
    """A model of the catalogue: converted, checked and ready to be registered with a worker."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def path(self) -> Path:
        """The folder with its manifest and tokenizer."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Load it; may take a second. Raises BadCheckpoint."""
        ...


class SetAside(Protocol):
    """An entry on its way out of the catalogue."""

    def restore(self) -> None:
        """Put it back. Raises TokenmuxError."""
        ...

    def delete(self) -> None: ...


class Catalogue(Protocol):
    """The models on disk. Its methods may block for long and are called from threads."""

    def names(self) -> Sequence[str]: ...

    def get(self, name: str) -> Entry:
        """Raises NotFound or BadCheckpoint."""
        ...

    def register_folder(self, name: str, folder: Path, *, progress: Progress) -> Entry:
        """Convert a checkpoint and keep it. Raises AlreadyExists, NotFound, BadCheckpoint,
        UnsupportedModel, DoesNotFit."""
        ...

    def register_gguf(self, name: str, file: Path, *, progress: Progress) -> Entry:
        """The same for a GGUF file."""
        ...

    def set_aside(self, name: str) -> SetAside:
        """Take a model's files out of the catalogue, to be deleted or restored; the source stays.

        Raises NotFound, InUse when another server serves it, and TokenmuxError when the disk does not let us.
        """
        ...

    def remove(self, name: str) -> None:
        """Set it aside and delete it."""
        ...
