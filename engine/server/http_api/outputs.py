"""What is read of one output of the front: text, scored tokens and calls of tools, piece by piece."""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenmux.server.front.call_reader import joined_calls
from tokenmux.server.front.generation import PlacedCall, TokenDelta
from tokenmux.server.http_api.scored_tokens import ScoredToken, TokenScorer


@dataclass(frozen=True, slots=True)
class OutputPiece:
    """An output, or a piece of it. `tokens` are there if their log-probabilities were asked for, `token_ids`
    if they themselves were."""

    text: str
    tokens: tuple[ScoredToken, ...] = ()
    calls: tuple[PlacedCall, ...] = ()
    token_ids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.calls or self.token_ids)

    @classmethod
    def joined(cls, pieces: Iterable["OutputPiece"]) -> "OutputPiece":
        """One piece of several that follow each other."""
        found = list(pieces)
        return cls(
            "".join(piece.text for piece in found),
            tuple(token for piece in found for token in piece.tokens),
            joined_calls(call for piece in found for call in piece.calls),
            tuple(token for piece in found for token in piece.token_ids),
        )


class OutputReader:
    """Reads one output."""

    def __init__(self, *, with_token_ids: bool) -> None:
        self._with_token_ids = with_token_ids
        self._scorer = TokenScorer()
        self.begun = False
        """True once the answer has begun; for those who write it."""

    def take(self, delta: TokenDelta) -> OutputPiece:
        """Read more of the output."""
        ids = delta.token_ids if self._with_token_ids else ()
        return OutputPiece(delta.text, self._scorer.of(delta), delta.calls, ids)
