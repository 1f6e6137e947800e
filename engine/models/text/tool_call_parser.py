"""Finds the calls of tools in an output while it grows.

    output ──▶ [ text | <tool_call> ... </tool_call> | text ] ──▶ text that is certain, and whole calls

What may become the beginning of a call is held back, and so is a call until it is complete. A call that
cannot be read, or is not one of an offered tool, stays text, as the model wrote it. Spaces around calls are
dropped.
"""

from tokenmux.models.text.detokenizer import overlap
from tokenmux.models.text.tool_formats import ToolCall, ToolFormat, ToolSchemas

Found = tuple[str, list[ToolCall]]


class ToolCallParser:
    """The calls in one output."""

    def __init__(self, form: ToolFormat, tools: ToolSchemas) -> None:
        self._form = form
        self._tools = tools
        self._held = ""
        self._in_call = False
        self._searched = 0
        """How much of the call that is held was searched for its end."""
        self._space = ""
        """Space that is dropped if a call follows."""
        self._begun = self._after_call = False
        self._calls: list[ToolCall] = []

    def push(self, text: str) -> Found:
        """Add output. Returns the text and the calls that are certain now."""
        self._held += text
        said = ""
        while self._held:
            before = len(self._held), self._in_call
            said += self._take_call() if self._in_call else self._take_text()
            if before == (len(self._held), self._in_call):
                break
        return said, self._found_calls()

    def finish(self) -> Found:
        """The rest, after the end of the output."""
        said = self._read(self._held, "") if self._in_call else self._say(self._held)
        if not self._after_call:
            said += self._space
        self._held, self._in_call = "", False
        return said, self._found_calls()

    def _found_calls(self) -> list[ToolCall]:
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
            self._in_call, self._searched = True, 0
        else:
            end = len(self._held) - overlap(self._held, opening)
            said, self._held = self._held[:end], self._held[end:]
        return self._say(said)

    def _take_whole(self) -> str:
        """Take text in a form whose calls are the whole output."""
        self._in_call = not self._begun and self._held.lstrip().startswith(self._form.begins)
        if self._in_call or self._held.isspace():
            return ""
        self._begun = True
        said, self._held = self._held, ""
        return self._say(said)

    def _take_call(self) -> str:
        """Read a call that has ended. What cannot be read is text."""
        marks = [mark for mark in (self._form.closing, self._form.opening) if mark]
        ends = [(at, mark) for mark in marks if (at := self._held.find(mark, self._searched)) >= 0]
        if not ends:
            longest = max(map(len, marks), default=1)
            self._searched = max(len(self._held) - longest + 1, 0)
            return ""
        at, mark = min(ends)
        closing = mark if mark == self._form.closing else ""
        body, self._held = self._held[:at], self._held[at + len(closing) :]
        self._in_call = False
        return self._read(body, closing)

    def _read(self, body: str, closing: str) -> str:
        calls = self._form.read(body, self._tools)
        if calls is None:
            return self._say(self._form.opening + body + closing)
        self._calls += calls
        self._space, self._after_call = "", True
        return ""

    def _say(self, text: str) -> str:
        """The text without the space at its end, which is held back."""
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        return said
