"""Which tokens may come next: a pure function of (grammar, tokens so far).

Compiled grammars are kept, and so are states between two tokens, by the tokens that led there; a state that
is not kept is rebuilt from them. So nothing has to follow a request when it moves, is preempted or recovers.
"""

from collections import OrderedDict

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.grammar import Grammar
from tokenmux.messages.mask_messages import MaskAnswer, MaskQuestion
from tokenmux.models.grammar.vocabulary import Vocabulary

MOST_STATES = 256
"""States kept of one model. The least recently used one is dropped."""

LIMITS = LLParserLimits(
    max_grammar_size=200_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)
"""A state of the lexer takes 1 to 2 kB. What else the library limits by itself is enough: fuel of a step is
spent in about 15 ms."""


def compile_grammar(vocabulary: Vocabulary, source: str) -> LLMatcher:
    """Compile a grammar. Raises InvalidRequest with the reason if that is not possible, or if there is
    nothing that it allows.

    Other threads of Python go on meanwhile. The library limits what it does, but not tightly: limit the time
    of the process for a grammar that has not been tried.
    """
    matcher = LLMatcher(vocabulary.tokens, source, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InvalidRequest(fault_of(matcher))
    first = matcher.deep_copy()
    bits = np.frombuffer(first.compute_bitmask(), np.uint8)
    if first.is_error():
        raise InvalidRequest(fault_of(first))
    if not bits.any():
        raise InvalidRequest("it allows no output at all")
    return matcher


class Matchers:
    """The grammars of one model, and where requests are in them. For one thread, but for `add`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._compiled: dict[str, LLMatcher] = {}
        self._states: OrderedDict[tuple[str, bytes], LLMatcher] = OrderedDict()

    def add(self, grammar: Grammar) -> None:
        """Compile a grammar. Raises InvalidRequest."""
        if grammar.id not in self._compiled:
            self._compiled[grammar.id] = compile_grammar(self._vocabulary, grammar.source)

    def remove(self, grammar_id: str) -> None:
        """Forget a grammar, if it is known."""
        self._compiled.pop(grammar_id, None)
        for key in [key for key in self._states if key[0] == grammar_id]:
            del self._states[key]

    def mask(self, question: MaskQuestion) -> MaskAnswer:
        """Which tokens may follow the output so far. The end tokens of the model may where the grammar allows
        an end, and nowhere else."""
        grammar_id, tokens = question.grammar_id, question.output
        if grammar_id not in self._compiled:
            return MaskAnswer(b"", "its grammar could not be compiled")
        spelled = np.array(tokens, np.int32)
        state = self._states.pop((grammar_id, spelled[:-1].tobytes()), None) if len(tokens) else None
        if state is not None:
            state.consume_token(tokens[-1])
        else:
            state = self._compiled[grammar_id].deep_copy()
            state.consume_tokens(list(tokens))
        mask = self._next(state)
        if not mask.error:
            self._states[grammar_id, spelled.tobytes()] = state
            if len(self._states) > MOST_STATES:
                self._states.popitem(last=False)
        return mask

    def _next(self, state: LLMatcher) -> MaskAnswer:
        if state.is_error():
            return MaskAnswer(b"", fault_of(state))
        bits = np.frombuffer(state.compute_bitmask(), np.uint8).copy()
        if state.is_error():
            return MaskAnswer(b"", fault_of(state))
        size, may_end = self._vocabulary.size, state.is_accepting()
        bits = bits[: -(-size // 8)]
        for token in self._vocabulary.end_token_ids:
            # One that is spelled like text would else be allowed where the grammar allows that text.
            bit = np.uint8(1 << token % 8)
            bits[token // 8] = bits[token // 8] | bit if may_end else bits[token // 8] & ~bit
        if not bits.any():
            return MaskAnswer(b"", "none of the model's tokens continues it as the grammar demands")
        return MaskAnswer(bits.tobytes())


def fault_of(matcher: LLMatcher) -> str:
    """Why the library refuses, in one line."""
    said = matcher.get_error().replace("<non-verbose/>", "").strip()
    if said.startswith("NoExtension"):
        return "there is no output that it allows, or its rules lead back to themselves without end"
    return " ".join(said.split("\n   1 |")[0].split())[:300]
