"""What an executor asks the process that computes its masks, for all requests of a step that have a grammar.

That process is also sent `AddGrammar` and `RemoveGrammar`, over a connection of their own, and answers with
`GrammarReady`.
"""

from msgspec import Struct


class MaskQuestion(Struct, frozen=True, array_like=True):
    """Which tokens may follow `output`, so that it obeys a grammar?"""

    grammar_id: str
    output: tuple[int, ...]


class MaskAnswer(Struct, frozen=True, array_like=True):
    """One bit for each token of the vocabulary, the lowest of each byte first; or why there is no answer."""

    bits: bytes
    error: str = ""


MaskQuestions = tuple[MaskQuestion, ...]
MaskAnswers = tuple[MaskAnswer, ...]
