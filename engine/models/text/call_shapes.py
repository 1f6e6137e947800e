"""What stands before the arguments of a call and after them, in forms whose arguments are JSON.

Patterns never go back over what they took, so that a text of spaces costs no more than one of letters.
"""

import re

_SCALAR = r'(?:"(?:[^"\\]|\\.)*+"|[^\s"{}\[\],]++)'
_OTHER_KEY = rf'"(?!name"|arguments"|parameters")[^"\\]*+"\s*+:\s*+{_SCALAR}\s*+'


class CallShape:
    """A way to write calls. `head` ends with the brace that opens the arguments, or is a call without any;
    its group `name` is the tool, unless all calls are of the tool `name`. `gap` may stand between two calls,
    and after the last one."""

    def __init__(self, head: str, gap: str, name: str | None = None) -> None:
        self.name = name
        self._first = re.compile(head)
        self._next = re.compile(gap + head)
        self._gap = re.compile(gap)

    def match(self, text: str, most: int, *, follows: bool) -> re.Match[str] | None:
        """The head with which the first `most` characters of a text begin, if they do; after a gap if it
        `follows` a call."""
        return (self._next if follows else self._first).match(text, 0, most)

    def without_gap(self, text: str) -> str:
        """What comes after a gap."""
        gap = self._gap.match(text)
        return text[gap.end() :] if gap else text


JSON_CALL = CallShape(
    rf'\s*+\[?+\s*+\{{\s*+(?:{_OTHER_KEY},\s*+)*+"name"\s*+:\s*+"(?P<name>[^"\\]*+)"\s*+'
    rf'(?:,\s*+(?:{_OTHER_KEY},\s*+)*+"(?:arguments|parameters)"\s*+:\s*+(?P<arguments>\{{)|\}})',
    rf"(?:\s*+,\s*+{_OTHER_KEY})*+\s*+\}}?+[\s;,\]]*+",
)
"""`{"name": NAME, "arguments": {...}}`, also several, also in a list."""

NAMED_CALL = CallShape(
    r"\s*+(?P<name>[^\s\[\]{}\"]++)\s*+(?:\[CALL_ID\][^\[{]*+)?+(?:\[ARGS\])?+\s*+(?P<arguments>\{)", r"\s*+"
)
"""`NAME[ARGS]{...}`."""

_CALL_BEGIN, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
DEEPSEEK_CALL = CallShape(
    rf"\s*+{_CALL_BEGIN}(?:\s*+function\s*+{_SEPARATOR})?+(?P<name>[^<\n{{]++)"
    rf"(?:{_SEPARATOR}|\n)\s*+(?:```json)?+\s*+(?P<arguments>\{{)",
    r"\s*+(?:```)?+\s*+(?:<｜tool▁call▁end｜>)?+\s*+",
)
"""`NAME` and the object of its arguments between marks, in which the object may be fenced."""


def arguments_alone(name: str) -> CallShape:
    """The arguments of the tool with that name, and nothing else."""
    return CallShape(r"\s*+(?P<arguments>\{)", r"\s*+", name)
