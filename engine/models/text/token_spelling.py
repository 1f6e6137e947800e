"""How vocabularies write the bytes of their tokens, by the decoder that reads them.

ByteLevel              one character for each byte: "Ġthe" is b" the"
Metaspace, Replace     "▁" for a space: "▁the" is b" the"
WordPiece              "##ing" for the middle of a word: b"ing"
"""

from collections.abc import Callable, Collection
from functools import cache

Spelling = Callable[[str], bytes | None]
"""The bytes of a token as its vocabulary writes it; None if it is not written so, as added tokens are not."""


def spelling_of(decoder_kinds: Collection[str]) -> Spelling:
    """How tokens are written for a decoder with these parts, named as in tokenizer.json."""
    if "ByteLevel" in decoder_kinds:
        return _byte_level
    if "Metaspace" in decoder_kinds or "Replace" in decoder_kinds:
        return lambda written: written.replace("▁", " ").encode()
    if "WordPiece" in decoder_kinds:
        return lambda written: written.removeprefix("##").encode()
    return str.encode


def _byte_level(written: str) -> bytes | None:
    bytes_of = _byte_of_character()
    if any(character not in bytes_of for character in written):
        return None
    return bytes(map(bytes_of.__getitem__, written))


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable characters of Latin-1 stand for themselves, and other bytes for the characters
    from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in set(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
