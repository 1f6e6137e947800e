"""A child process that reads grammars; `tokenmux.server.children.grammar_children` is its other side.

A question has the `kind` of a constraint, with its text beside it; the answer is the source of a grammar. It
has been compiled for a vocabulary of bytes, and tried for a few of them: what the library cannot do for one
vocabulary it cannot do for another.
"""

from typing import Any

import numpy as np
from llguidance import LLMatcher

from tokenmux.core.errors import InvalidRequest
from tokenmux.models.grammar.matchers import compile_grammar, fault_of
from tokenmux.models.grammar.translation import source_of
from tokenmux.models.grammar.vocabulary import Vocabulary
from tokenmux.server.children.child_main import Reply, Tell, run

TRIED_BYTES = 24


def read_constraint(header: dict[str, Any], payload: bytes, report: Tell) -> Reply:
    """Read one constraint."""
    source = source_of(str(header["kind"]), payload.decode())
    _try(compile_grammar(_BYTES, source))
    return {}, source.encode()


def _try(matcher: LLMatcher) -> None:
    """Write the beginning of an output. Raises InvalidRequest if the library gives up."""
    for step in range(TRIED_BYTES):
        allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        texts = np.flatnonzero(allowed[:256])
        if matcher.is_error():
            raise InvalidRequest(fault_of(matcher))
        if not len(texts):
            return
        matcher.consume_token(int(texts[step % len(texts)]))


_BYTES = Vocabulary.of_bytes()

if __name__ == "__main__":
    run(read_constraint)
