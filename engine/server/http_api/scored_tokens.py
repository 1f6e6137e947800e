"""Log-probabilities of tokens of an output, or of the prompt before it, as OpenAI's two forms of answers show
them.

Both name tokens by their text. A token that is a part of a character has none: it is shown as OpenAI's
completions show it, `bytes:\\xe2\\x96`.
"""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenmux.core.sampling import LogProbabilities
from tokenmux.server.front.generation import PromptDelta, TokenDelta
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
    """A token. `offset` is the place in the text where it begins, in characters; `likeliest` and their
    log-probabilities are those of all tokens that might have come. The first token of a prompt has none."""

    spelling: bytes
    log_probability: float | None
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

    def of_prompt(self, delta: PromptDelta, n_likeliest: int) -> tuple[ScoredToken, ...]:
        """The tokens of a prompt that is shown before the output."""
        spellings = dict(delta.spellings)
        pairs = zip(delta.token_ids, delta.log_probabilities, strict=True)
        return tuple(self._scored(spellings, token, told, n_likeliest) for token, told in pairs)

    def _scored(
        self,
        spellings: Mapping[int, bytes],
        token: int,
        told: LogProbabilities | None,
        n_likeliest: int | None = None,
    ) -> ScoredToken:
        named = () if told is None else told.likeliest[:n_likeliest]
        likeliest = tuple((spellings[other], value) for other, value in named)
        drawn = None if told is None else told.drawn
        scored = ScoredToken(spellings[token], drawn, likeliest, self._offset)
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
        token_logprobs=[
            None if token.log_probability is None else shown_logprob(token.log_probability)
            for token in tokens
        ],
        tokens=[token_name(token.spelling) for token in tokens],
        top_logprobs=[_by_name(token) for token in tokens],
    )


def _chat_token(token: ScoredToken) -> TokenLogprobBody:
    assert token.log_probability is not None, "an answer does not begin with the prompt"
    top = [_scored_body(spelling, value) for spelling, value in token.likeliest]
    own = _scored_body(token.spelling, token.log_probability)
    return TokenLogprobBody(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _scored_body(spelling: bytes, value: float) -> ScoredTokenBody:
    return ScoredTokenBody(token=token_name(spelling), logprob=shown_logprob(value), bytes=list(spelling))


def _by_name(token: ScoredToken) -> dict[str, float] | None:
    """The likeliest log-probability of each text: several tokens may have the same."""
    if token.log_probability is None:
        return None
    found: dict[str, float] = {}
    for spelling, value in (*token.likeliest, (token.spelling, token.log_probability)):
        found.setdefault(token_name(spelling), shown_logprob(value))
    return found


def token_name(spelling: bytes) -> str:
    """The text of a token."""
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def shown_logprob(value: float) -> float:
    """A log-probability as JSON can show it."""
    return max(value, LEAST_LOGPROB)
