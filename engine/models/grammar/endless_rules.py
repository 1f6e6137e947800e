"""Finds rules of grammars whose text never ends, such as one that contains itself in all its alternatives."""

import re
from collections.abc import Collection, Mapping

MOST_ROUNDS = 200
"""Each round looks at all rules that are not known to end, in turn from both sides. What is not known after
the last one is left to the library."""

_COMMENT = re.compile(r"(?m)^\s*+//.*$")
_RULE = re.compile(r"(?m)^[?!]?([a-z_]\w*)(?:\[[^\]\n]*\])?(?:\.-?\d+)?\s*:")
_TOKEN = re.compile(
    r'"(?:[^"\\\n]|\\.)*"i?|/(?:[^/\\\n]|\\.)+/[a-z]*|->\s*\w+|~\s*\d+(?:\s*\.\.\s*\d+)?|\w+|\S'
)


def endless_rule(lark: str) -> str | None:
    """A rule that is used and always contains another of its kind, if there is one: an output that came to it
    could not end. Terminals, and what is not understood, count as finite.

    >>> endless_rule('start: "a" b\\nb: "b" b')
    'b'
    >>> endless_rule('start: "a" start | "b"') is None
    True
    """
    rules = _rules(lark)
    ends: set[str] = set()
    waiting = list(rules)
    for _ in range(MOST_ROUNDS):
        n_before = len(ends)
        for name in waiting:
            if _Expression(rules[name], rules.keys(), ends).ends():
                ends.add(name)
        if len(ends) == n_before:
            break
        waiting = [name for name in reversed(waiting) if name not in ends]
    else:
        return None
    used = _used(rules)
    found = next((name for name in rules if name in used and name not in ends), None)
    passed: set[str] = set()
    while found is not None and found not in passed:  # up to a rule that leads back to itself
        passed.add(found)
        found = next(token for token in rules[found] if token in rules and token not in ends)
    return found


def _used(rules: Mapping[str, list[str]]) -> set[str]:
    """The rules that can be reached from `start`."""
    found, waiting = {"start"}, ["start"]
    while waiting:
        new = {token for token in rules.get(waiting.pop(), ()) if token in rules} - found
        found |= new
        waiting += new
    return found


def _rules(lark: str) -> dict[str, list[str]]:
    """The tokens of each rule; of one that is defined twice, those of all its alternatives."""
    text = _COMMENT.sub("", lark)
    found: dict[str, list[str]] = {}
    places = [(match.start(), match.end(), match[1]) for match in _RULE.finditer(text)]
    bounds = [start for start, _, _ in places[1:]] + [len(text)]
    for (_, begin, name), end in zip(places, bounds, strict=True):
        body = re.split(r"(?m)^(?:%|[?!]?[A-Z_]\w*(?:\.-?\d+)?\s*:)", text[begin:end])[0]
        tokens = _TOKEN.findall(body)
        found[name] = [*found[name], "|", *tokens] if name in found else tokens
    return found


class _Expression:
    """The right side of a rule, read from left to right. What may be left out ends."""

    def __init__(self, tokens: list[str], rules: Collection[str], ends: Collection[str]) -> None:
        self._tokens = tokens
        self._rules = rules
        self._ends = ends

    def ends(self) -> bool:
        """True if it has an output that ends."""
        open_groups: list[tuple[bool, bool, bool]] = []  # what stood before a bracket
        any_ends, all_end, last = False, True, True
        for token in self._tokens:
            if token in "([":
                open_groups.append((any_ends, all_end and last, token == "["))
                any_ends, all_end, last = False, True, True
            elif token == "|":
                any_ends, all_end, last = any_ends or (all_end and last), True, True
            elif token in ")]" and open_groups:
                within = any_ends or (all_end and last)
                any_ends, all_end, may_lack = open_groups.pop()
                last = within or may_lack
            elif token in "*?" or token.startswith("~"):
                last = last or token in "*?" or re.match(r"~\s*0", token) is not None
            elif not token.startswith("->") and token != "+":
                all_end, last = all_end and last, token not in self._rules or token in self._ends
        return any_ends or (all_end and last)
