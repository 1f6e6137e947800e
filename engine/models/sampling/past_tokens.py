"""The tokens that a request's logit rules look at: those of its prompt, and how often each was drawn."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class PastTokens:
    """The past of one request within one step: what the node sent, and what later iterations draw."""

    def __init__(self, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> None:
        """`prompt` are the tokens that occur in the prompt, in any order."""
        self._prompt = frozenset(prompt)
        self._counts = Counter(output)
        self._output = list(output)

    def append(self, token: int) -> None:
        """A token was drawn."""
        self._output.append(token)
        self._counts[token] += 1

    def ends_with(self, tokens: Sequence[int]) -> bool:
        """True if the last tokens of the output are these."""
        n = len(tokens)
        return not n or tuple(self._output[-n:]) == tuple(tokens)

    def seen(self) -> npt.NDArray[np.int64]:
        """The distinct tokens of prompt and output."""
        return np.array(sorted(self._prompt | self._counts.keys()), np.int64)

    def drawn(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The distinct tokens of the output, and how often each occurs."""
        n = len(self._counts)
        tokens = np.fromiter(self._counts.keys(), np.int64, n)
        return tokens, np.fromiter(self._counts.values(), np.float32, n)
