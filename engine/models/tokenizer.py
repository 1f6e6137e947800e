"""Text in and out: encoding by the model's own tokenizer and chat template, and text that grows token by token.

The front owns text; workers see token ids. `Tokenizer` encodes and checks what clients send. A `Detokenizer` belongs to one
output: it gives out only text that later tokens cannot change (no half of a UTF-8 character, nothing that may yet
become a stop string), and ends at the first stop string even where that spans tokens.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tokenmux.engine.core.errors import BadCheckpoint, InvalidRequest
from tokenmux.engine.models.quiet import quiet_transformers

_REPLACEMENT = "\ufffd"
_LONGEST_HALF = 3
"""A character of UTF-8 has at most four bytes, so an unfinished one shows as at most three replacement characters."""


class Tokenizer:
    """The tokenizer of one model: thread-safe for reading, as fast tokenizers are."""

    def __init__(
        self, backend: PreTrainedTokenizerBase, vocab_size: int, stop_token_ids: Collection[int]
    ) -> None:
        self._backend = backend
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
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), repr(error))
            raise BadCheckpoint(f"{folder}: the tokenizer cannot be read ({reason})") from error
        if not backend.is_fast:
            raise BadCheckpoint(f"{folder}: the tokenizer has no fast version (tokenizer.json)")
        return cls(backend, vocab_size, _stop_token_ids(folder, backend))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises InvalidRequest for text that is not valid Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the prompt is not valid Unicode (character {error.start})") from None
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, each message with `role` and `content`, ready for the assistant's next turn.

        Raises InvalidRequest when the model has no chat template or its template refuses the messages.
        """
        if not messages:
            raise InvalidRequest("a conversation needs at least one message")
        if self._backend.chat_template is None:
            raise InvalidRequest("this model has no chat template; send a prompt as text or token ids")
        try:
            text = self._backend.apply_chat_template(
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
        text = self._backend.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return str(text)

    def detokenizer(
        self, stop: Sequence[str] = (), *, prompt: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> "Detokenizer":
        """A fresh detokenizer for one output. `prompt` is what it continues: only its end matters, for spaces."""
        return Detokenizer(self, stop, prompt, skip_special_tokens)


class Detokenizer:
    """Turns one output into text as its tokens arrive; ends it at the first stop string.

        tokens   [ given out ........ | context | pending ...... ]
                                      ^ window begins here: a few tokens are decoded anew each time, since the
                                        text of a token can depend on the one before it

    `stopped` is the stop string that ended the output, once one did; text from there on is never given out.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], prompt: Sequence[int], skip_special_tokens: bool
    ) -> None:
        if not all(stop):
            raise InvalidRequest("a stop string must not be empty")
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._skip = skip_special_tokens
        self._window = list(prompt[-4:])
        self._n_context = len(self._window)
        self._given = self._decode(self._window)
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; the text that is certain now, which may be empty."""
        if self.stopped is not None:
            return ""
        text = ""
        for token in token_ids:
            text += self._take(token)
        return self._release(text, final=False)

    def finish(self) -> str:
        """The rest of the text, when no more tokens will come."""
        if self.stopped is not None:
            return ""
        rest = self._decode(self._window)[len(self._given) :]
        self._window, self._given = [], ""
        return self._release(rest, final=True)

    def _take(self, token: int) -> str:
        """Text that `token` makes certain, characters complete."""
        self._window.append(token)
        text = self._decode(self._window)
        complete = text.rstrip(_REPLACEMENT)
        if len(text) - len(complete) > _LONGEST_HALF:
            complete = text[: len(text) - _LONGEST_HALF]
        if len(complete) <= len(self._given):
            return ""
        new = complete[len(self._given) :]
        self._given = complete
        if complete == text:
            # All is given out: keep the tokens that gave this text as context, drop those before.
            self._window = self._window[self._n_context :]
            self._n_context = len(self._window)
            self._given = self._decode(self._window)
        return new

    def _release(self, text: str, *, final: bool) -> str:
        """Hold back what may become a stop string; cut at one that is complete."""
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            # The one that is complete first, so that it does not matter in what portions tokens arrive.
            at, self.stopped = min(found, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self._held = ""
            return text[:at]
        n_held = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip) if token_ids else ""


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def _stop_token_ids(folder: Path, backend: PreTrainedTokenizerBase) -> set[int]:
    ids: set[int] = set() if backend.eos_token_id is None else {int(backend.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        try:
            found: Any = json.loads((folder / name).read_bytes()).get("eos_token_id")
        except FileNotFoundError:
            continue
        except (ValueError, AttributeError) as error:
            raise BadCheckpoint(f"{folder / name}: damaged ({error})") from None
        if found is not None:
            ids.update(found if isinstance(found, list) else [found])
            break
    return ids
