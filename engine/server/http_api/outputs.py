"""What is read of one output of the front: text, scored tokens and calls of tools, piece by piece."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from tokenmux.models.text.followed_call import CallPiece
from tokenmux.models.text.tool_call_parser import ToolCallParser
from tokenmux.models.text.tool_formats import ToolFormat, ToolSchemas
from tokenmux.server.front.generation import TokenDelta
from tokenmux.server.http_api.scored_tokens import ScoredToken, TokenScorer

ID_CHARS = 24


@dataclass(frozen=True, slots=True)
class CallStart:
    """The name of the tool that is called, and an id of the call's own."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call of a tool, or a piece of one, and its place among the calls of the output. Only the first piece
    has a `start`; arguments follow each other."""

    index: int
    start: CallStart | None
    arguments: str


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """An output, or a piece of it. `tokens` are there if their log-probabilities were asked for."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()
    calls: tuple[PlacedCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.calls)

    @classmethod
    def joined(cls, pieces: Iterable["OutputPiece"]) -> "OutputPiece":
        """One piece of several that follow each other."""
        found = list(pieces)
        return cls(
            "".join(piece.text for piece in found),
            tuple(token for piece in found for token in piece.tokens),
            _joined_calls([call for piece in found for call in piece.calls]),
        )


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How calls are read: their form, the tools that were offered, and whether there may be several."""

    form: ToolFormat
    tools: ToolSchemas
    several: bool


class OutputReader:
    """Reads one output."""

    def __init__(self, use: ToolUse | None) -> None:
        """Without `use`, calls are not looked for."""
        self._use = use
        self._scorer = TokenScorer()
        self._parser = None if use is None else ToolCallParser(use.form, use.tools)
        self._n_calls = 0
        self.begun = False
        """True once the answer has begun; for those who write it."""

    @property
    def called(self) -> bool:
        """True if there was a call."""
        return self._n_calls > 0

    def take(self, delta: TokenDelta) -> OutputPiece:
        """Read more of the output."""
        tokens = self._scorer.of(delta)
        if self._parser is None:
            return OutputPiece(delta.text, tokens)
        text, calls = self._parser.push(delta.text)
        return OutputPiece(text, tokens, self._placed(calls))

    def finish(self) -> OutputPiece:
        """Read what was held back, after the end."""
        if self._parser is None:
            return OutputPiece("")
        text, calls = self._parser.finish()
        return OutputPiece(text, (), self._placed(calls))

    def _placed(self, pieces: Iterable[CallPiece]) -> tuple[PlacedCall, ...]:
        assert self._use is not None
        placed = []
        for piece in pieces:
            start = None
            if piece.name is not None:
                self._n_calls += 1
                start = CallStart(_call_id(self._use.form), piece.name)
            if self._use.several or self._n_calls == 1:
                placed.append(PlacedCall(self._n_calls - 1, start, piece.arguments))
        return _joined_calls(placed)


def _joined_calls(pieces: Iterable[PlacedCall]) -> tuple[PlacedCall, ...]:
    """One piece of each call, in order."""
    found: list[PlacedCall] = []
    for index, group in groupby(pieces, key=lambda piece: piece.index):
        of_call = list(group)
        found.append(PlacedCall(index, of_call[0].start, "".join(piece.arguments for piece in of_call)))
    return tuple(found)


def _call_id(form: ToolFormat) -> str:
    if form.id_chars is not None:
        return secrets.token_hex(form.id_chars)[: form.id_chars]
    return "call_" + secrets.token_hex(ID_CHARS // 2)
