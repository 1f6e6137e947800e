"""What the front needs from the layers below it, as Protocols, so that it can be tested against scripted stand-ins.

`engine.runtime` implements the worker, `engine.models` the catalogue and its tokenizers, `engine.instance` what is known of capacity.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tokenmux.engine.core.facts import ModelFacts
from tokenmux.engine.core.message import FromWorker, ToWorker


class Worker(Protocol):
    """A running worker. It answers through the callback that its factory was given, from a thread of its own."""

    def send(self, message: ToWorker) -> None:
        """Hand over a message without waiting. Raises WorkerFailed when the worker is gone."""
        ...

    def kill(self) -> None:
        """End it now, whatever it does. `close` it afterwards."""
        ...

    def close(self) -> None:
        """Stop it and free what it holds; may block. Nothing is delivered afterwards. Harmless when it is gone already."""
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
        """Take the next tokens; returns the text that is certain by now. Once `stopped` is set: always empty."""
        ...

    def finish(self) -> str:
        """The rest of the text that was held back; no tokens may follow."""
        ...

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, if one did."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back for one model. Called from several threads at once."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens with which the model itself ends its output."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids, special tokens included. Raises InvalidRequest for text that is not valid Unicode."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of messages with `role` and `content`, plus the cue for an answer.

        Raises InvalidRequest if there is no chat template, or it refuses the messages.
        """
        ...

    def detokenizer(self, stop: Sequence[str], *, prompt: Sequence[int]) -> Detokenizer:
        """For one output that continues `prompt` and ends at the first of the stop strings."""
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


Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


class Catalogue(Protocol):
    """The models on disk. Its methods may block for long and are called from threads."""

    def names(self) -> Sequence[str]: ...

    def get(self, name: str) -> Entry:
        """Raises NotFound or BadCheckpoint."""
        ...

    def register_folder(self, name: str, folder: Path, *, progress: Progress) -> Entry:
        """Convert a checkpoint and keep it. Raises AlreadyExists, NotFound, BadCheckpoint, UnsupportedModel, DoesNotFit."""
        ...

    def register_gguf(self, name: str, file: Path, *, progress: Progress) -> Entry:
        """The same for a GGUF file."""
        ...

    def remove(self, name: str) -> None:
        """Delete a model's converted files; the source stays. Raises NotFound."""
        ...
