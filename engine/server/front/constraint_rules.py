"""Checks of what the output must obey; each raises InvalidRequest that says what to change.

Whether a grammar can be compiled is found out in another process (`GrammarReader`), after these.
"""

import json

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelFacts
from tokenmux.server.front.generation import Ask, Constraint

MAX_CONSTRAINT_BYTES = 256 << 10
MAX_CHOICES = 4096


def choice_of(strings: list[str]) -> Constraint:
    """The constraint that the output is one of these strings. Raises InvalidRequest."""
    if not 1 <= len(strings) <= MAX_CHOICES:
        said = f"there are {len(strings)} strings to choose from: give 1 to {MAX_CHOICES}"
        raise InvalidRequest(said, field="constraint")
    return Constraint("choice", json.dumps(strings, ensure_ascii=False))


def check_constraint(ask: Ask) -> None:
    """Check what can be seen without reading the grammar."""
    if ask.constraint is None:
        return
    name = ask.constraint.title
    try:
        n_bytes = len(ask.constraint.text.encode())
    except UnicodeEncodeError as error:
        said = f"{name} is not valid Unicode (character {error.start})"
        raise InvalidRequest(said, field="constraint") from None
    if n_bytes > MAX_CONSTRAINT_BYTES:
        raise InvalidRequest(
            f"{name} has {n_bytes} bytes: at most {MAX_CONSTRAINT_BYTES} are allowed; make it smaller",
            field="constraint",
        )
    if not n_bytes:
        raise InvalidRequest(f"{name} is empty: leave it out for free output", field="constraint")
    if ask.ignore_end_tokens:
        raise InvalidRequest(
            "ignore_end_tokens lets output go on after what a constraint allows: leave one of the two out",
            field="ignore_end_tokens",
        )


def check_can_end(ask: Ask, facts: ModelFacts, end_token_ids: frozenset[int]) -> None:
    """Raise InvalidRequest if the output must obey a grammar and has no token to end with."""
    if ask.constraint is not None and not end_token_ids:
        raise InvalidRequest(
            f"{facts.id} has no end token, and output that obeys a constraint could not end: use another "
            "model",
            field="constraint",
        )
