"""Checks of how tokens are to be drawn; each raises InvalidRequest that names the field and what to change.

`tokenmux.server.front.request_rules` checks everything else.
"""

from collections.abc import Iterable, Sequence

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelFacts
from tokenmux.core.sampling import NO_RULES, LogitRules
from tokenmux.server.front.counts import check_count, check_token_ids
from tokenmux.server.front.generation import Ask

MAX_TEMPERATURE = 10.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.001, 10.0
"""A penalty far below the least is 0 in float32, and 0 times the -inf of a forbidden token is NaN: that token
would be drawn."""
MAX_PENALTY = 2.0
"""Bound of frequency and presence penalties, either way, as OpenAI and vLLM have it."""
MAX_BIAS = 100.0
MAX_BIASES = 1024
MAX_FORBIDDEN_TOKENS = 1024
MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARS = 256
MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1


def check_sampling(ask: Ask, facts: ModelFacts) -> None:
    """Check how tokens are to be drawn."""
    if not 0 <= ask.temperature <= MAX_TEMPERATURE:
        raise InvalidRequest(
            f"temperature {ask.temperature:g} is out of range: use 0 (greedy) to {MAX_TEMPERATURE:g}"
        )
    if ask.top_k < 0:
        raise InvalidRequest(f"top_k {ask.top_k} is negative: use 0 for no limit")
    if not 0 < ask.top_p <= 1:
        raise InvalidRequest(f"top_p {ask.top_p:g} is out of range: use more than 0 and at most 1")
    if not 0 <= ask.min_p <= 1:
        raise InvalidRequest(f"min_p {ask.min_p:g} is out of range: use 0 (no limit) to 1")
    if ask.seed is not None and not 0 <= ask.seed <= MAX_SEED:
        raise InvalidRequest(f"seed {ask.seed} is out of range: use 0 to 2**64 - 1")
    if not MIN_REPETITION_PENALTY <= ask.repetition_penalty <= MAX_REPETITION_PENALTY:
        raise InvalidRequest(
            f"repetition_penalty {ask.repetition_penalty:g} is out of range: use "
            f"{MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}; 1 means none"
        )
    for name, penalty in (
        ("frequency_penalty", ask.frequency_penalty),
        ("presence_penalty", ask.presence_penalty),
    ):
        if not -MAX_PENALTY <= penalty <= MAX_PENALTY:
            raise InvalidRequest(
                f"{name} {penalty:g} is out of range: use {-MAX_PENALTY:g} to {MAX_PENALTY:g}; 0 means none"
            )
    for name, n in (("logprobs", ask.logprobs), ("prompt_logprobs", ask.prompt_logprobs)):
        if n is not None and not 0 <= n <= MAX_LOGPROBS:
            raise InvalidRequest(
                f"{name} {n} is out of range: use 0 (that token alone) to {MAX_LOGPROBS}, or leave it out"
            )
    _check_tokens(ask, facts)


def _check_tokens(ask: Ask, facts: ModelFacts) -> None:
    """Check which tokens are favoured or forbidden."""
    check_count("tokens in logit_bias", ask.logit_bias, MAX_BIASES, field="logit_bias")
    check_token_ids("logit_bias", [token for token, _ in ask.logit_bias], facts, field="logit_bias")
    for token, bias in ask.logit_bias:
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequest(
                f"logit_bias {bias:g} of token {token} is out of range: use {-MAX_BIAS:g} to {MAX_BIAS:g}"
            )
    if len({token for token, _ in ask.logit_bias}) < len(ask.logit_bias):
        raise InvalidRequest("logit_bias names a token twice: give one bias for each token")
    check_count(
        "forbidden_token_ids",
        ask.forbidden_token_ids,
        MAX_FORBIDDEN_TOKENS,
        field="forbidden_token_ids",
    )
    check_token_ids("forbidden_token_ids", ask.forbidden_token_ids, facts)
    check_count("bad_words", ask.bad_words, MAX_BAD_WORDS, field="bad_words")
    for word in ask.bad_words:
        if not word.strip():
            raise InvalidRequest("a string of bad_words is empty: leave it out", field="bad_words")
        if len(word) > MAX_BAD_WORD_CHARS:
            raise InvalidRequest(
                f"a string of bad_words has {len(word)} characters: at most {MAX_BAD_WORD_CHARS} are allowed",
                field="bad_words",
            )


def spellings(bad_words: Iterable[str]) -> list[str]:
    """The texts whose tokens are forbidden: each word at the beginning of the output, and after a space."""
    return [text for word in bad_words for text in (word.lstrip(), " " + word.lstrip())]


def logit_rules(ask: Ask, word_tokens: Sequence[Sequence[int]], facts: ModelFacts) -> LogitRules | None:
    """The rules in force; None if nothing changes logits. `word_tokens` are those of `spellings`.

    Raises InvalidRequest if every token would be forbidden.
    """
    sequences = (*((token,) for token in ask.forbidden_token_ids), *map(tuple, word_tokens))
    forbidden = tuple(dict.fromkeys(sequence for sequence in sequences if sequence))
    if len({sequence[0] for sequence in forbidden if len(sequence) == 1}) >= facts.vocab_size:
        raise InvalidRequest(
            f"forbidden_token_ids and bad_words forbid all {facts.vocab_size} tokens of {facts.id}: "
            "leave at least one"
        )
    rules = LogitRules(
        ask.repetition_penalty, ask.frequency_penalty, ask.presence_penalty, ask.logit_bias, forbidden
    )
    return None if rules == NO_RULES else rules
