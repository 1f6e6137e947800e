"""Text that grows token by token and in the end equals the decoding of all tokens at once.

`tokenizers` has a `DecodeStream` for that. It is not used: in version 0.23 it never emits text that ends in
U+FFFD (a model may write that character, or bytes that are not UTF-8) and meanwhile decodes a longer and
longer window, raises if a run of byte tokens turns out to be invalid, and cannot be flushed at the end. It
takes 0.5 to 1 us per token, this file 2 to 4.

Needs only `tokenizers`, not transformers. One `TokenText` serves all outputs of a model; the rest belongs to
one output.
"""

import codecs
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from tokenmux.core.errors import NotServable
from tokenmux.models.foreign_errors import first_line, is_foreign
from tokenmux.models.text.token_spelling import spelling_of

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 4
"""Number of prompt tokens used as context: a token's text can depend on the token before it (leading spaces,
pieces of words)."""
_LONGEST_RUN = 128
"""Longest run of byte tokens that is held back (about 40 characters): an invalid one changes the text of the
whole run before it."""
_LONGEST_WINDOW = 32
"""Most tokens decoded together. Longer windows are cut; they occur only in outputs that are not text."""
_UNFINISHED_BYTES = 3
"""An incomplete UTF-8 character has at most three bytes, so at most three tokens."""


class TokenText:
    """How a model's tokens become text: its tokenizer, its special tokens, and which tokens spell single
    bytes."""

    def __init__(self, tokenizer: Tokenizer, special_ids: Collection[int]) -> None:
        """`special_ids` are the tokens that are left out of the text by default."""
        kinds = set(_decoder_kinds(tokenizer))
        self.tokenizer = tokenizer
        self.special: Mapping[int, str] = {
            token: text for token in special_ids if (text := tokenizer.id_to_token(token)) is not None
        }
        self.byte_of: Mapping[int, int] = _byte_tokens(tokenizer) if "ByteFallback" in kinds else {}
        """Byte tokens of a decoder with byte fallback, which reads a whole run of them as UTF-8, or as one
        U+FFFD each."""
        self.splits_characters = "ByteLevel" in kinds or not self.byte_of
        """True if a U+FFFD at the end of a text may be the beginning of a character."""
        self._spelling = spelling_of(kinds)

        self._ids = {text: token for token, text in self.special.items() if text}
        self._lengths = sorted({len(text) for text in self._ids}, reverse=True)
        self._first = {text[0] for text in self._ids}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of all `token_ids`; bytes that are not UTF-8 become U+FFFD."""
        shown = [token for token in token_ids if not (skip_special_tokens and token in self.special)]
        return _decoded(self.tokenizer, shown)

    def spell(self, token: int) -> bytes:
        """The bytes that a token stands for, wherever it occurs; those of a special token are its name."""
        byte = self.byte_of.get(token)
        if byte is not None:
            return bytes((byte,))
        written = self.tokenizer.id_to_token(token)
        if written is None:
            return b""
        spelled = None if token in self.special else self._spelling(written)
        return written.encode() if spelled is None else spelled

    def specials_in(self, text: str) -> Iterator[tuple[int, int, int]]:
        """The special tokens spelled out in `text`: start, end and id of each."""
        at = 0
        while at < len(text):
            ends = (at + n for n in self._lengths) if text[at] in self._first else ()
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is None:
                at += 1
            else:
                yield at, min(end, len(text)), self._ids[text[at:end]]
                at = end


class TextStream:
    """The text of one output: equal to the decoding of all its tokens, with a bounded amount of work for
    each.

        window   [ context | pending ]      decoded together; its first characters were emitted before

    A run of byte tokens is held back until it ends or is invalid. From `_LONGEST_RUN` tokens on its
    characters are emitted as they are completed; only then, and only if the run becomes invalid later, does
    the text differ (by the characters emitted).
    """

    def __init__(
        self, tokens: TokenText, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        """Start an output that continues `prompt`."""
        self._tokenizer = tokens.tokenizer
        self._byte_of = tokens.byte_of
        self._splits_characters = tokens.splits_characters
        self._hidden: Collection[int] = tokens.special if skip_special_tokens else ()
        self._window = [token for token in prompt[-_CONTEXT_TOKENS:] if self._shows(token)]
        self._given = self._decode(self._window)
        self._run = _Run()

    def push(self, token: int) -> str:
        """Add the next token. Returns the text that is certain now, which may be empty."""
        if not self._shows(token):
            return ""
        byte = self._byte_of.get(token)
        if byte is not None:
            return self._push_byte(token, byte)
        text = self._end_run()
        self._window.append(token)
        return text + self._advance(final=False)

    def finish(self) -> str:
        """The rest of the text, after the last token."""
        return self._end_run() + self._advance(final=True)

    def _shows(self, token: int) -> bool:
        return token not in self._hidden and self._tokenizer.id_to_token(token) is not None

    def _decode(self, token_ids: Sequence[int]) -> str:
        return _decoded(self._tokenizer, token_ids) if token_ids else ""

    def _push_byte(self, token: int, byte: int) -> str:
        run = self._run
        text = run.take(token, byte)
        if text:
            # A character that began before this run can no longer be completed.
            text = self._advance(final=True) + text
        if len(run.held) < _LONGEST_RUN or run.is_open:
            return text
        # Too long to be held back: what it spells so far is emitted like any other text.
        spelled = self._through_tokenizer(run.held[: len(run.held) - run.n_unfinished])
        run.open()
        return text + spelled

    def _end_run(self) -> str:
        """End the run of byte tokens at the end: no more follow."""
        run = self._run
        if run.last is None:
            return ""
        self._run = _Run()
        if run.is_open:
            self._restart(run.last)
            return _REPLACEMENT * len(run.held)
        if self._window and self._window[-1] in self._byte_of:
            # The prompt ended in byte tokens, which would be decoded together with these.
            self._restart(run.last)
            return run.text()
        self._window += run.held
        return ""

    def _through_tokenizer(self, token_ids: list[int]) -> str:
        self._window += token_ids
        return self._advance(final=True)

    def _restart(self, token: int) -> None:
        """Start over: all text up to `token` was emitted."""
        self._window = [token]
        self._given = self._decode(self._window)

    def _advance(self, *, final: bool) -> str:
        """Decode the window. Returns what is new and certain in it."""
        text = self._decode(self._window)
        if not text.startswith(self._given):
            text = self._reconcile(text)
        held = not final and self._splits_characters and text.endswith(_REPLACEMENT)
        end = max(len(text) - held, len(self._given))
        new, self._given = text[len(self._given) : end], text[:end]
        if held:
            if len(self._window) > _LONGEST_WINDOW:
                self._cut(text)
        elif self._window:
            context = self._decode(self._window[-1:])
            # A last token without text of its own (a space that is stripped at the beginning) gives no
            # context.
            if context or len(self._window) > _LONGEST_WINDOW:
                self._window, self._given = self._window[-1:], context
        return new

    def _reconcile(self, text: str) -> str:
        """Handle text that does not begin with what was emitted: that cannot be taken back."""
        if self._given.endswith(_REPLACEMENT) and text.startswith(self._given[:-1]):
            # The prompt ended within a character, and this is the rest of it.
            self._given = self._given[:-1]
            return text
        self._window, self._given = self._window[-1:], ""
        return self._decode(self._window)

    def _cut(self, text: str) -> None:
        """Drop tokens from the front of a long window, at a place where no character can be cut in two."""
        longest = _UNFINISHED_BYTES + 1
        for n_kept in range(longest, 2 * longest):
            kept = self._window[-n_kept:]
            rest = self._decode(kept)
            n_dropped = len(text) - len(rest)
            if n_dropped <= len(self._given) and text.endswith(rest):
                self._window, self._given = kept, self._given[n_dropped:]
                return


class _Run:
    """A run of byte tokens. While it is not open, nothing of it was emitted; `held` are the tokens without
    text so far."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.last: int | None = None
        self.is_open = False
        self.n_unfinished = 0
        self._spelled: list[str] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._is_valid = True

    def take(self, token: int, byte: int) -> str:
        """Add a byte. Returns the text that it makes certain: none, the characters of an open run, or
        U+FFFD for all held tokens."""
        self.last = token
        self.held.append(token)
        self.n_unfinished += 1
        if self._is_valid:
            try:
                character = self._utf8.decode(bytes((byte,)))
            except UnicodeDecodeError:
                self._is_valid = False
        if not self._is_valid:
            text = _REPLACEMENT * len(self.held)
            self.held.clear()
            self.is_open = True
            return text
        if not character:
            return ""
        self.n_unfinished = 0
        if self.is_open:
            self.held.clear()
            return character
        self._spelled.append(character)
        return ""

    def open(self) -> None:
        """Open the run: its complete characters were emitted."""
        self.is_open = True
        self.held = self.held[len(self.held) - self.n_unfinished :]

    def text(self) -> str:
        """The text of a run that has ended and is not open."""
        return _REPLACEMENT * len(self.held) if self.n_unfinished else "".join(self._spelled)


def _decoded(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """The text of tokens. Raises NotServable if the decoder fails: some panic, which is not an Exception."""
    try:
        text: str = tokenizer.decode(token_ids, skip_special_tokens=False)
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise NotServable(f"the model's decoder fails on its output ({first_line(error)})") from error
    return text


def _decoder_kinds(tokenizer: Tokenizer) -> Iterator[str]:
    """Types of the tokenizer's decoders, by their names in tokenizer.json; none for decoders written in
    Python."""
    try:
        description = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    except Exception:  # noqa: BLE001 - what a decoder written in Python raises here is its own
        return
    waiting: list[Any] = [description]
    while waiting:
        decoder = waiting.pop()
        yield decoder.get("type", "")
        waiting += decoder.get("decoders", ())


def _byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """The byte of each token that is spelled like <0xE2>."""
    spelled = ((byte, f"<0x{byte:{form}}>") for byte in range(256) for form in ("02X", "02x"))
    return {id: byte for byte, text in spelled if (id := tokenizer.token_to_id(text)) is not None}
