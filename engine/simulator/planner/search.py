"""Searches over simulations for the largest or smallest number that keeps a service level."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


def fewest(is_enough: Callable[[int], bool], low: int, high: int, first: int | None = None) -> int | None:
    """The smallest n in `[low, high]` with `is_enough(n)`, or None. Grows steps up or down from `first` (or
    `low`), then bisects.

    A simulation is not strictly monotonic: a pool one larger may do slightly worse. The answer is the edge
    that bisection finds.
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
    """The state of a search for the smallest number: what it has looked at, and what it needs next (None:
    it is finished)."""

    seen: tuple[int, ...]
    needs: int | None
    answer: int | None = None


class _Unknown(Exception):
    """The search needs a result that has not been simulated yet."""


def replay(known: Mapping[int, bool], low: int, high: int, first: int | None = None) -> SearchState:
    """Search for the smallest number with the results known so far. This lets a search run in several
    processes and still take the same path as in one."""
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
    """The largest n of `low, low + step, ... high` with `is_enough(n)`, by bisection; `low` if there is
    none."""
    good, bad = 0, (high - low) // step + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_enough(low + middle * step):
            good = middle
        else:
            bad = middle
    return low + good * step
