"""Text from elsewhere, made safe for a terminal: names, messages and answers may contain escape sequences."""

from typing import TextIO

from rich.text import Text

_KEPT = "\n\t"
_REPLACED = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in _KEPT}


def safe(text: str) -> str:
    """The text with control characters replaced, except newlines and tabs."""
    return text.translate(_REPLACED)


def shown_name(text: str, style: str = "") -> Text:
    """A name as one printable line, which rich does not read as markup."""
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text), style=style)


def shown_on(stream: TextIO, text: str) -> str:
    """A model's answer as it is written to `stream`: unchanged to a file or pipe, `safe` to a terminal."""
    return safe(text) if stream.isatty() else text
