"""Log-probabilities of output tokens, as OpenAI's two forms of answers show them.

Both name tokens by their text. A token that is a part of a character has none: it is shown as OpenAI's
completions show it, `bytes:\\xe2\\x96`.
"""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenmux.core.sampling import LogProbabilities
from tokenmux.server.front.generation import TokenDelta
from tokenmux.server.http_api.answer_bodies import (
    ChatLogprobs,
    CompletionLogprobs,
    ScoredTokenBody,
    TokenLogprobBody,
)

LEAST_LOGPROB = -9999.0
"""What OpenAI shows for all that are less: JSON has no number for minus infinity."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the output. `offset` is the place in the text where it begins, in characters; `likeliest`
    and their log-probabilities are those of all tokens that might have come."""

    spelling: bytes
    log_probability: float
    likeliest: tuple[tuple[bytes, float], ...]
    offset: int


class TokenScorer:
    """The scored tokens of one output, delta by delta."""

    def __init__(self) -> None:
        self._offset = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, delta: TokenDelta) -> tuple[ScoredToken, ...]:
        """The tokens of a delta; none if their log-probabilities were not asked for."""
        if not delta.log_probabilities:
            if not delta.token_ids:  # what comes before the output or was held back: only the echo counts
                self._offset += 0 if delta.index else len(delta.text)
            return ()
        spellings = dict(delta.spellings)
        pairs = zip(delta.token_ids, delta.log_probabilities, strict=True)
        return tuple(self._scored(spellings, token, told) for token, told in pairs)

    def _scored(self, spellings: Mapping[int, bytes], token: int, told: LogProbabilities) -> ScoredToken:
        likeliest = tuple((spellings[other], value) for other, value in told.likeliest)
        scored = ScoredToken(spellings[token], told.drawn, likeliest, self._offset)
        self._offset += len(self._utf8.decode(scored.spelling))
        return scored


def chat_logprobs(tokens: Sequence[ScoredToken]) -> ChatLogprobs | None:
    """The form of chats; None if there are no tokens."""
    if not tokens:
        return None
    return ChatLogprobs(content=[_chat_token(token) for token in tokens], refusal=None)


def completion_logprobs(tokens: Sequence[ScoredToken]) -> CompletionLogprobs | None:
    """The form of completions: lists beside each other. The token itself is always among the likeliest."""
    if not tokens:
        return None
    return CompletionLogprobs(
        text_offset=[token.offset for token in tokens],
        token_logprobs=[_shown(token.log_probability) for token in tokens],
        tokens=[_name(token.spelling) for token in tokens],
        top_logprobs=[_by_name(token) for token in tokens],
    )


def _chat_token(token: ScoredToken) -> TokenLogprobBody:
    top = [_scored_body(spelling, value) for spelling, value in token.likeliest]
    own = _scored_body(token.spelling, token.log_probability)
    return TokenLogprobBody(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _scored_body(spelling: bytes, value: float) -> ScoredTokenBody:
    return ScoredTokenBody(token=_name(spelling), logprob=_shown(value), bytes=list(spelling))


def _by_name(token: ScoredToken) -> dict[str, float]:
    """The likeliest log-probability of each text: several tokens may have the same."""
    found: dict[str, float] = {}
    for spelling, value in (*token.likeliest, (token.spelling, token.log_probability)):
        found.setdefault(_name(spelling), _shown(value))
    return found


def _name(spelling: bytes) -> str:
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def _shown(value: float) -> float:
    return max(value, LEAST_LOGPROB)
