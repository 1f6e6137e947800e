"""Text of others on this terminal: names, messages and answers may hold what would steer it (escape sequences, bells, other directions)."""

from typing import TextIO

from rich.text import Text

_KEPT = "\n\t"
_REPLACED = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in _KEPT}


def safe(text: str) -> str:
    """The text with control characters replaced; lines and tabs stay, and all that languages need."""
    return text.translate(_REPLACED)


def name(text: str, style: str = "") -> Text:
    """A name as one printable line for rich, never as its markup."""
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text), style=style)


def shown_on(stream: TextIO, text: str) -> str:
    """What to write of a model's answer: all of it into a file or pipe, `safe` on a terminal."""
    return safe(text) if stream.isatty() else text
