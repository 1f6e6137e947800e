"""Text in and out: encoding by the model's own tokenizer and chat template.

The front owns text; workers see token ids. `Tokenizer` encodes and checks what clients send. How an output becomes text,
token by token, is `detokenizer.py`'s subject.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tokenmux.core.errors import BadCheckpoint, InvalidRequest
from tokenmux.models.text.detokenizer import Detokenizer, TokenText
from tokenmux.models.text.end_tokens import end_tokens
from tokenmux.models.transformers_log import quiet_transformers

logger = logging.getLogger(__name__)


class Tokenizer:
    """The tokenizer of one model: thread-safe for reading, as fast tokenizers are."""

    def __init__(
        self, backend: PreTrainedTokenizerBase, vocab_size: int, stop_token_ids: Collection[int]
    ) -> None:
        self.backend = backend
        core = backend.backend_tokenizer
        added = core.get_added_tokens_decoder()
        self._text = TokenText(core, [token for token, said in added.items() if said.special])
        self.vocab_size = vocab_size
        self.stop_token_ids = frozenset(stop_token_ids)

    @classmethod
    def load(cls, folder: Path, vocab_size: int, *, trust_remote_code: bool = False) -> "Tokenizer":
        """Read the tokenizer in a catalogue entry's folder. Raises BadCheckpoint when there is none or it is damaged.

        `stop_token_ids` are the tokens that end an output by the model's generation config and its tokenizer.
        """
        try:
            with quiet_transformers():
                backend = AutoTokenizer.from_pretrained(
                    str(folder), local_files_only=True, trust_remote_code=trust_remote_code
                )
        except MemoryError:
            raise
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            raise BadCheckpoint(f"{folder}: the tokenizer cannot be read ({reason})") from error
        if not backend.is_fast:
            raise BadCheckpoint(f"{folder}: the tokenizer has no fast version (tokenizer.json)")
        ends = end_tokens(folder, backend.eos_token_id, vocab_size)
        for warning in ends.warnings:
            logger.warning("%s: %s", folder.name, warning)
        return cls(backend, vocab_size, ends.ids)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises InvalidRequest for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is not valid Unicode (character {error.start})") from None
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, each message with `role` and `content`, ready for the assistant's next turn.

        Raises InvalidRequest when the model has no chat template or its template refuses the messages.
        """
        if not messages:
            raise InvalidRequest("a conversation needs at least one message")
        if self.backend.chat_template is None:
            raise InvalidRequest("this model has no chat template; send a prompt as text or token ids")
        try:
            text = self.backend.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from None
        return self.encode(str(text), add_special_tokens=False)

    def check_token_ids(self, token_ids: Sequence[int]) -> None:
        """Raise InvalidRequest unless every id is a token of the model's vocabulary."""
        for index, token in enumerate(token_ids):
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(
                    f"token id {token} at index {index} is out of range: ids are 0 to {self.vocab_size - 1}"
                )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`; bytes that are not UTF-8 become replacement characters."""
        return self._text.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(
        self, stop: Sequence[str] = (), *, prompt: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> Detokenizer:
        """A fresh detokenizer for one output. `prompt` is what it continues: only its end matters, for spaces."""
        return Detokenizer(self._text, stop, prompt=prompt, skip_special_tokens=skip_special_tokens)
