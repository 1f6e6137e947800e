"""What the front needs to turn prompts into token ids and outputs into text, as Protocols.

`tokenmux.models.text` implements text, `tokenmux.server.children.encoder_children` the encoder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenmux.models.text.encoder import TextFacts
from tokenmux.server.front.generation import Encodable


class OutputText(Protocol):
    """The text of one output, step by step, cut at the first stop string."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Add the next tokens. Returns the text that is certain now; always empty once `stopped` is set."""
        ...

    def finish(self) -> str:
        """The rest of the text that was held back; no tokens may follow."""
        ...

    def spell(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        ...

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, if one did."""
        ...


class ModelText(Protocol):
    """Facts about a model's text, and the text of its outputs. A `PromptEncoder` encodes prompts."""

    @property
    def facts(self) -> TextFacts: ...

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens with which the model itself ends its output."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of all `token_ids`."""
        ...

    def detokenizer(
        self, stop: Sequence[str], *, prompt: Sequence[int], skip_special_tokens: bool
    ) -> OutputText:
        """A detokenizer for one output that continues `prompt` and ends at the first of the stop strings."""
        ...


class PromptEncoder(Protocol):
    """Prompts to token ids. Used from the event loop, which it never blocks."""

    async def encode(self, model: str, path: Path, facts: TextFacts, prompt: Encodable) -> Sequence[int]:
        """Token ids of a prompt or of words, by the tokenizer of the entry in folder `path`; errors name
        `model`.

        Raises InvalidRequest, NotServable if it exceeds the limits, Overloaded if its turn did not come in
        time.
        """
        ...

    def close(self) -> None:
        """Stop all work. Does not wait."""
        ...
