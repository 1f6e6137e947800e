"""What the front needs from the layers below it, as Protocols, so that it can be tested against scripted stand-ins.

`engine.runtime` implements the worker, `engine.models` the catalogue and its tokenizers, `engine.instance` what is known of capacity.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from tokenmux.engine.core.facts import ModelFacts
from tokenmux.engine.core.message import FromWorker, ToWorker


class Worker(Protocol):
    """A running worker. It answers through the callback that its factory was given, from a thread of its own."""

    def send(self, message: ToWorker) -> None:
        """Hand over a message without waiting. Raises WorkerFailed when the worker is gone."""
        ...

    def close(self) -> None:
        """Stop it and free what it holds; may block. Nothing is delivered afterwards. Harmless when it is gone already."""
        ...


WorkerFactory = Callable[[Callable[[FromWorker], None]], Worker]


class Capacity(Protocol):
    """What could ever fit on the device, however full it is now."""

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when the model can never be served beside the pinned ones."""
        ...

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raises DoesNotFit when one request of so many tokens, prompt and output, can never be."""
        ...


class Detokenizer(Protocol):
    """The text of one output, step by step, cut at the first stop string."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; returns the text that is certain by now. After `stopped_by` is set: always empty."""
        ...

    def finish(self) -> str:
        """The rest of the text that was held back; no tokens may follow."""
        ...

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, if one did."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back for one model. Called from several threads at once."""

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The tokens with which the model itself ends its output."""
        ...

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of (role, content) messages plus the cue for an answer. Raises InvalidRequest if the template refuses."""
        ...

    def detokenizer(self, stop_strings: Sequence[str]) -> Detokenizer: ...


class Entry(Protocol):
    """A model of the catalogue: converted, checked and ready to be registered with a worker."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def path(self) -> str:
        """The folder with its weight image and tokenizer."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Load it; may take a second."""
        ...


class Catalogue(Protocol):
    """The models on disk. Its methods may block for long and are called from threads."""

    def entries(self) -> Sequence[Entry]: ...

    def add(self, name: str, source: str) -> Entry:
        """Convert and keep a model. Raises AlreadyExists, NotFound, BadCheckpoint, UnsupportedModel."""
        ...

    def remove(self, name: str) -> None:
        """Delete a model's converted files; the source stays."""
        ...
