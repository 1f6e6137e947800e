"""What the front knows of a model's text: the facts, and the decoder of its output. Encoding runs in other
processes."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Core

from tokenmux.models.text.detokenizer import Detokenizer
from tokenmux.models.text.encoder import DECODER, TextFacts, load_core
from tokenmux.models.text.text_stream import TokenText


class Decoder:
    """The decoder of one entry, made at registration from its tokenizer: vocabulary and decoding steps, no
    patterns."""

    def __init__(self, core: Core, facts: TextFacts) -> None:
        added = core.get_added_tokens_decoder()
        self._text = TokenText(core, [token for token, said in added.items() if said.special])
        self.facts = facts

    @classmethod
    def load(cls, folder: Path) -> "Decoder":
        """Read an entry's decoder. Raises BadCheckpoint."""
        return cls(load_core(folder / DECODER), TextFacts.load(folder))

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """The tokens that end an output according to the model's generation config and its tokenizer."""
        return self.facts.stop_token_ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; bytes that are not UTF-8 become replacement characters."""
        return self._text.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(
        self, stop: Sequence[str] = (), *, prompt: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> Detokenizer:
        """A new detokenizer for one output that continues `prompt`. Only the prompt's end matters, for
        spaces."""
        return Detokenizer(self._text, stop, prompt=prompt, skip_special_tokens=skip_special_tokens)
