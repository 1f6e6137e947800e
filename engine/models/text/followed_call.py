"""Follows a block of calls while a model writes it: a call begins with its name, and its arguments are given
on as they come.

    {"name": "weather", "arguments":  ──▶ a call of weather
    {"city":                          ──▶ {"city":
     "Bern"}                          ──▶  "Bern"}

What is given on cannot be taken back. So a call is one as soon as a tool that was offered is named and the
object of its arguments begins, and the arguments are what the model wrote, to the brace that closes them or
to the end of the block. A block that does not begin with a call in a shape of its form is read as a whole
when it has ended.
"""

from dataclasses import dataclass

from tokenmux.models.text.tool_formats import ToolFormat, ToolSchemas

MAX_HEAD = 1024
"""A call whose arguments have not begun after this many characters is read when it has ended: what is
searched again with each token stays short."""


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call: the first one has the name of the tool, others continue the arguments."""

    name: str | None
    arguments: str


class FollowedBlock:
    """The calls in one block, between its opening and its end."""

    def __init__(self, form: ToolFormat, tools: ToolSchemas) -> None:
        self._form = form
        self._tools = tools
        self._held = ""
        self.begun = False
        """True once there is a call."""
        self._given_up = False
        self._depth = 0
        """How many braces of the arguments are open; 0 between two calls."""
        self._in_string = self._escaped = False

    def push(self, text: str) -> list[CallPiece]:
        """Add what was written. Returns what is certain of calls now."""
        self._held += text
        found: list[CallPiece] = []
        while True:
            if self._depth:
                found.append(CallPiece(None, self._take_arguments()))
            began = None if self._depth else self._begin()
            if began is None:
                return [piece for piece in found if piece.name is not None or piece.arguments]
            found.append(began)

    def finish(self) -> tuple[list[CallPiece], str]:
        """After the end of the block, calls that had to wait for it, and text that belongs to none."""
        rest = self._held
        if self.begun and not self._depth:
            rest = min((shape.without_gap(rest) for shape in self._form.shapes), key=len)
        calls = self._form.read(rest, self._tools) if rest else None
        if calls is None and self.begun:
            calls = self._form.read("[" + rest, self._tools)  # a list whose first calls were followed
        if calls is None:
            return [], rest
        return [CallPiece(call.name, call.arguments) for call in calls], ""

    def _begin(self) -> CallPiece | None:
        """Begin a call if what is held names one."""
        if self._given_up:
            return None
        heads = (shape.match(self._held, MAX_HEAD, follows=self.begun) for shape in self._form.shapes)
        shape, head = next(((s, m) for s, m in zip(self._form.shapes, heads, strict=True) if m), (None, None))
        name = shape.name or head["name"].strip() if shape and head else None
        if shape is None or head is None or name not in self._tools:
            self._given_up = head is not None or len(self._held) >= MAX_HEAD
            return None
        self.begun = True
        self._held = self._held[head.end() :]
        if head["arguments"] is None:
            return CallPiece(name, "{}")
        self._depth = 1
        return CallPiece(name, "{")

    def _take_arguments(self) -> str:
        """Take the arguments up to the brace that closes them."""
        for at, char in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char == "{":
                self._depth += 1
            elif char == "}":
                self._depth -= 1
                if not self._depth:
                    taken, self._held = self._held[: at + 1], self._held[at + 1 :]
                    return taken
        taken, self._held = self._held, ""
        return taken
