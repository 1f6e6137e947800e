"""Text of an output as its tokens arrive, up to its first stop string.

tokens ──▶ TextStream ──▶ text that later tokens cannot change ──▶ Detokenizer ──▶ text up to the first
stop string
"""

from collections.abc import Sequence

from tokenmux.core.errors import InvalidRequest
from tokenmux.models.text.text_stream import TextStream, TokenText

_FIRST_MARK, _OTHER_MARK = 0xD800, "\udfff"
"""Lone surrogates stand for special tokens in the search for stop strings: no decoder ever yields one."""


class Detokenizer:
    """Turns one output into text as its tokens arrive, and ends it at the first stop string.

    A stop string may contain special tokens ("<|end|>"), although they are left out of the text; each must be
    complete. `stopped` is the stop string that ended the output, if one did; it and everything after it is
    never emitted.
    """

    def __init__(
        self,
        tokens: TokenText,
        stop: Sequence[str] = (),
        *,
        prompt: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        """Raises InvalidRequest for an empty stop string."""
        if not all(stop):
            raise InvalidRequest("a stop string must not be empty")
        self.stopped: str | None = None
        self._tokens = tokens
        self._stream = TextStream(tokens, prompt, skip_special_tokens=skip_special_tokens)
        self._held = ""
        self._marks: dict[int, str] = {}
        self._stops = {text: text for text in stop}
        """Stop strings by their search form, which has a mark for each special token."""
        if skip_special_tokens and stop:
            self._mark_specials(tokens)

    def push(self, token_ids: Sequence[int]) -> str:
        """Add the next tokens. Returns the text that is certain now, which may be empty."""
        if self.stopped is not None:
            return ""
        text = ""
        for token in token_ids:
            mark = self._marks.get(token)
            # Text before a special token must be emitted before its mark, even if it is half a character.
            text += self._stream.push(token) if mark is None else self._stream.finish() + mark
        return self._release(text, final=False)

    def finish(self) -> str:
        """The rest of the text, after the last token."""
        if self.stopped is not None:
            return ""
        return self._release(self._stream.finish(), final=True)

    def spell(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        return self._tokens.spell(token)

    def _mark_specials(self, tokens: TokenText) -> None:
        """Leave marks for special tokens if a stop string contains one."""
        for text in list(self._stops):
            key, end = "", 0
            for start, after, token in tokens.specials_in(text):
                mark = self._marks.setdefault(token, chr(_FIRST_MARK + len(self._marks)))
                key += text[end:start] + mark
                end = after
            del self._stops[text]
            self._stops[key + text[end:]] = text
        if self._marks:
            self._marks = dict.fromkeys(tokens.special, _OTHER_MARK) | self._marks

    def _release(self, text: str, *, final: bool) -> str:
        """Hold back what may become a stop string; cut at one that is complete."""
        marked = self._held + text
        plain, place = _without_marks(marked) if self._marks else (marked, None)
        found, n_held = [], 0
        for stop, name in self._stops.items():
            has_mark = place is not None and any(map(_is_mark, stop))
            where = marked if has_mark else plain
            at = where.find(stop)
            if at >= 0:
                start, last = at, at + len(stop) - 1
                if place is not None and not has_mark:
                    start, last = place[start], place[last]
                found.append((last, start, name))
            elif not final:
                n = overlap(where, stop)
                if n and place is not None and not has_mark:
                    n = len(marked) - place[len(plain) - n]
                n_held = max(n_held, n)
        if found:
            # The one that is complete first, so that it does not matter how tokens are grouped.
            _, at, self.stopped = min(found, key=lambda hit: hit[:2])
            self._held = ""
        else:
            at = len(marked) - n_held
            self._held = marked[at:]
        return marked[:at] if place is None else _without_marks(marked[:at])[0]


def _is_mark(character: str) -> bool:
    return "\ud800" <= character <= _OTHER_MARK


def _without_marks(text: str) -> tuple[str, list[int] | None]:
    """`text` without marks, and the original index of each remaining character; None if there were no
    marks."""
    if not any(map(_is_mark, text)):
        return text, None
    place = [at for at, character in enumerate(text) if not _is_mark(character)]
    return "".join(text[at] for at in place), place


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
