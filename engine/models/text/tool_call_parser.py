"""Finds the calls of tools in an output while it grows.

    output ──▶ [ text | <tool_call> ... </tool_call> | text ] ──▶ what is certain of text and calls

What may become the beginning of a call is held back. A call that cannot be read, or is not one of an offered
tool, stays text, as the model wrote it. Spaces around calls are dropped. Text and calls are the same however
the output is cut into pieces.
"""

from tokenmux.models.text.detokenizer import overlap
from tokenmux.models.text.followed_call import CallPiece, FollowedBlock
from tokenmux.models.text.tool_formats import ToolFormat, ToolSchemas

Found = tuple[str, list[CallPiece]]


class ToolCallParser:
    """The calls in one output."""

    def __init__(self, form: ToolFormat, tools: ToolSchemas) -> None:
        self._form = form
        self._tools = tools
        self._held = ""
        self._block: FollowedBlock | None = None
        """What is between the marks of calls, if that is where the output is."""
        self._space = ""
        """Space that is dropped if a call follows."""
        self._begun = self._after_call = False
        self._calls: list[CallPiece] = []

    def push(self, text: str) -> Found:
        """Add output. Returns what is certain now of its text and its calls."""
        self._held += text
        said = ""
        while self._held:
            before = len(self._held), self._block
            said += self._take_text() if self._block is None else self._take_block(self._block)
            if before == (len(self._held), self._block):
                break
        return said, self._found_calls()

    def finish(self) -> Found:
        """The rest, after the end of the output."""
        if self._block is None:
            said = self._say(self._held)
        else:
            said = self._close(self._block, self._held, "")
        if not self._after_call:
            said += self._space
        self._held = ""
        return said, self._found_calls()

    def _found_calls(self) -> list[CallPiece]:
        found, self._calls = self._calls, []
        return found

    def _take_text(self) -> str:
        """Take the text up to a call, or up to what may become one."""
        opening = self._form.opening
        if not opening:
            return self._take_whole()
        at = self._held.find(opening)
        if at >= 0:
            said, self._held = self._held[:at], self._held[at + len(opening) :]
            self._block = FollowedBlock(self._form, self._tools)
        else:
            end = len(self._held) - overlap(self._held, opening)
            said, self._held = self._held[:end], self._held[end:]
        return self._say(said)

    def _take_whole(self) -> str:
        """Take text in a form whose calls are the whole output."""
        if not self._begun and self._held.lstrip().startswith(self._form.begins):
            self._block = FollowedBlock(self._form, self._tools)
        if self._block is not None or self._held.isspace():
            return ""
        self._begun = True
        said, self._held = self._held, ""
        return self._say(said)

    def _take_block(self, block: FollowedBlock) -> str:
        """Take a block of calls up to its end, or up to what may become one."""
        marks = [mark for mark in (self._form.closing, self._form.opening) if mark]
        ends = [(at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if not ends:
            certain = len(self._held) - max((overlap(self._held, mark) for mark in marks), default=0)
            self._add(block.push(self._held[:certain]))
            self._held = self._held[certain:]
            return ""
        at, mark = min(ends)
        closing = mark if mark == self._form.closing else ""
        body, self._held = self._held[:at], self._held[at + len(closing) :]
        return self._close(block, body, closing)

    def _close(self, block: FollowedBlock, body: str, closing: str) -> str:
        """End a block, whose last part is `body`. What cannot be read is text."""
        self._block = None
        self._add(block.push(body))
        calls, rest = block.finish()
        self._add(calls)
        if block.begun or calls:
            return self._say(rest)
        return self._say(self._form.opening + rest + closing)

    def _add(self, calls: list[CallPiece]) -> None:
        if calls:
            self._calls += calls
            self._space, self._after_call = "", True

    def _say(self, text: str) -> str:
        """The text without the space at its end, which is held back."""
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        return said
