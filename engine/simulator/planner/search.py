"""Fewest or most: searches over simulations for the edge at which a service level is still kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


def fewest(is_enough: Callable[[int], bool], low: int, high: int, first: int | None = None) -> int | None:
    """The least n in `[low, high]` for which `is_enough(n)`, by growing steps up or down from `first` (or
    `low`) and bisection; None if there is none.

    A simulation is not strictly monotonic: a pool one larger may do a hair worse. The answer is the edge that
    bisection meets.
    """
    at = low if first is None else first
    step, bad, good = 1, low - 1, high + 1
    if is_enough(at):
        good = at
        while good > low and is_enough(at := max(low, good - step)):
            good, step = at, 2 * step
        bad = at if at < good else bad
    else:
        while at < high:
            bad, at, step = at, min(high, at + step), 2 * step
            if is_enough(at):
                good = at
                break
        if good > high:
            return None
    while good - bad > 1:
        middle = (good + bad) // 2
        if is_enough(middle):
            good = middle
        else:
            bad = middle
    return good


@dataclass(frozen=True, slots=True)
class SearchState:
    """How far a search for the fewest is, given what is known: what it looked at, and what it must know next
    (None: it is over)."""

    seen: tuple[int, ...]
    needs: int | None
    answer: int | None = None


class _Unknown(Exception):
    """The search asks for what nobody has simulated yet."""


def replay(known: Mapping[int, bool], low: int, high: int, first: int | None = None) -> SearchState:
    """Search for the fewest with what is known already. So a search can be spread over processes and still
    take the path that it takes alone."""
    seen: list[int] = []

    def look(n: int) -> bool:
        if n not in known:
            raise _Unknown(n)
        seen.append(n)
        return known[n]

    try:
        answer = fewest(look, low, high, first)
    except _Unknown as unknown:
        return SearchState(tuple(seen), unknown.args[0])
    return SearchState(tuple(seen), None, answer)


def most(is_enough: Callable[[int], bool], low: int, high: int, step: int = 1) -> int:
    """The largest n of `low, low + step, ... high` for which `is_enough(n)`, by bisection; `low` if none
    is."""
    good, bad = 0, (high - low) // step + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_enough(low + middle * step):
            good = middle
        else:
            bad = middle
    return low + good * step
