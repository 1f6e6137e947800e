"""The bytes of a model's tokens, as the library that computes masks needs them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from tokenmux.core.errors import UnsupportedModel
from tokenmux.models.foreign_errors import foreign_errors_as
from tokenmux.models.text.encoder import DECODER, TextFacts


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of one model. `end_token_ids` are those with which it ends its output; `size` is the number
    of its logits, of which the last ones may stand for no token."""

    tokens: LLTokenizer
    size: int
    end_token_ids: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path, size: int) -> "Vocabulary":
        """Read the tokens of a catalogue entry, from its decoder. Takes up to seconds, in which Python does
        nothing else.

        Raises UnsupportedModel if the spelling of its tokens is not known, or none ends an output.
        """
        ends = tuple(sorted(TextFacts.load(folder).stop_token_ids))
        if not ends:
            raise UnsupportedModel(
                f"{folder.name} has no end token: output that must obey a grammar could not end"
            )
        path = folder / DECODER
        with foreign_errors_as(
            lambda error: UnsupportedModel(f"the spelling of {folder.name}'s tokens is not known ({error})")
        ):
            # A tokenizer may have more tokens than the model has logits, or fewer.
            document = json.loads(path.read_bytes())
            n_tokens = max(size, 1 + _highest_id(document))
            document["decoder"] = _known_decoder(document.get("decoder"))
            tokens = LLTokenizer(json.dumps(document), n_vocab=n_tokens, eos_token=list(ends))
            return cls(tokens, size, ends)

    @classmethod
    def of_bytes(cls) -> "Vocabulary":
        """A vocabulary of the 256 bytes: it is made at once, and every grammar can be tried with it."""
        return cls(LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=[256]), 257, (256,))


class _Bytes:
    """What the library expects of a tokenizer: one token for each byte, and one that ends an output."""

    eos_token_id = 256
    bos_token_id = None
    tokens: Sequence[bytes] = (*(bytes((byte,)) for byte in range(256)), b"<end>")
    special_token_ids: Sequence[int] = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _known_decoder(decoder: Any) -> Any:
    """A decoder of a tokenizer.json in the parts that the library knows: of SentencePiece's, it knows the one
    of Llama, and would take the "▁" of others for a letter."""
    parts = decoder.get("decoders", ()) if isinstance(decoder, dict) else ()
    if not {"Metaspace", "ByteFallback"} <= {part["type"] for part in parts}:
        return decoder
    kept = [part for part in parts if part["type"] not in ("Metaspace", "ByteFallback")]
    return {"type": "Sequence", "decoders": [*_AS_LLAMA, *kept]}


_AS_LLAMA = (
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
)


def _highest_id(document: dict[str, Any]) -> int:
    """The highest token id in a tokenizer.json."""
    vocabulary = document["model"].get("vocab", {})
    ids = vocabulary.values() if isinstance(vocabulary, dict) else (len(vocabulary) - 1,)
    return max((*ids, *(token["id"] for token in document.get("added_tokens", ()))), default=-1)
