"""Pages of a list that is sorted by name: where one ends, and the next begins."""

import base64
import binascii
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TypeVar

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.model_names import MAX_NAME_CHARS

MAX_PAGE = 1000

Listed = TypeVar("Listed")


def page_of(
    items: Sequence[Listed], name: Callable[[Listed], str], *, size: int, token: str, filter: str
) -> tuple[Sequence[Listed], str]:
    """The page after `token` of the items whose names contain `filter`, and the token of the next one.

    A token holds the last name of its page, so that what is added or removed meanwhile makes no other item
    appear twice or never. Raises InvalidRequest.
    """
    if not 0 <= size <= MAX_PAGE:
        raise InvalidRequest(f"page_size {size} is out of range: use 1 to {MAX_PAGE}, or 0 for {MAX_PAGE}")
    if len(filter) > MAX_NAME_CHARS:
        raise InvalidRequest(f"filter has {len(filter)} characters: at most {MAX_NAME_CHARS} are allowed")
    words = filter.casefold()
    found = [item for item in items if words in name(item).casefold()] if words else items
    start = bisect_right(found, _name_in(token), key=name) if token else 0
    page = found[start : start + (size or MAX_PAGE)]
    more = start + len(page) < len(found)
    return page, _token_of(name(page[-1])) if more else ""


def _token_of(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _name_in(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise InvalidRequest(
            "page_token is not one that this server gave: leave it out for the first page"
        ) from None
