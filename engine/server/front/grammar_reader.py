"""What the front needs to turn what a client says of its output into a grammar, as a Protocol.

`tokenmux.server.children.grammar_children` implements it.
"""

from typing import Protocol

from tokenmux.core.grammar import Grammar
from tokenmux.server.front.generation import Constraint


class GrammarReader(Protocol):
    """Reads constraints. Used from the event loop, which it never blocks."""

    async def read(self, constraint: Constraint) -> Grammar:
        """The grammar, which has been compiled once to see that it can be.

        Raises InvalidRequest with the reason if it cannot within the limits, Overloaded if its turn did not
        come in time.
        """
        ...

    def close(self) -> None:
        """Stop all work. Does not wait."""
        ...
