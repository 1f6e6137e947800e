"""Reads the calls of tools in one output of the front, piece by piece."""

from collections.abc import Iterable
from hashlib import sha256
from itertools import groupby

from tokenmux.models.text.followed_call import CallPiece
from tokenmux.models.text.tool_call_parser import ToolCallParser
from tokenmux.server.front.generation import CallStart, PlacedCall
from tokenmux.server.front.tool_use import ToolUse

ID_CHARS = 24

ReadText = tuple[str, tuple[PlacedCall, ...]]
"""Text without calls, and the calls."""


class CallReader:
    """Reads one output; see the module. The same output is read alike at any server, ids of calls included:
    they depend on its `name` and on nothing else."""

    def __init__(self, use: ToolUse, name: str) -> None:
        self._use = use
        self._name = name
        self._parser = ToolCallParser(use.form, use.tools)
        self._n_calls = 0

    @property
    def called(self) -> bool:
        """True if there was a call."""
        return self._n_calls > 0

    def push(self, text: str) -> ReadText:
        """Read more of the output. Returns what is certain."""
        said, calls = self._parser.push(text)
        return said, self._placed(calls)

    def finish(self) -> ReadText:
        """Read what was held back, after the end."""
        said, calls = self._parser.finish()
        return said, self._placed(calls)

    def _placed(self, pieces: Iterable[CallPiece]) -> tuple[PlacedCall, ...]:
        placed = []
        for piece in pieces:
            start = None
            if piece.name is not None:
                self._n_calls += 1
                start = CallStart(self._call_id(), piece.name)
            if self._use.several or self._n_calls == 1:
                placed.append(PlacedCall(self._n_calls - 1, start, piece.arguments))
        return joined_calls(placed)

    def _call_id(self) -> str:
        digits = sha256(f"{self._name}/{self._n_calls}".encode()).hexdigest()
        if self._use.form.id_chars is not None:
            return digits[: self._use.form.id_chars]
        return "call_" + digits[:ID_CHARS]


def joined_calls(pieces: Iterable[PlacedCall]) -> tuple[PlacedCall, ...]:
    """One piece of each call, in order."""
    found: list[PlacedCall] = []
    for index, group in groupby(pieces, key=lambda piece: piece.index):
        of_call = list(group)
        found.append(PlacedCall(index, of_call[0].start, "".join(piece.arguments for piece in of_call)))
    return tuple(found)
