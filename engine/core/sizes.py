"""Sizes as people write them: "512MiB", "2 GiB", "1.5GB", or a plain number of bytes."""

import re
from fractions import Fraction

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
MAX_CHARS = 40
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: object) -> int:
    """Read a size in bytes. Raises ValueError if `value` is not a size.

    >>> parse_size("1.5 GiB"), parse_size("2GB"), parse_size(512)
    (1610612736, 2000000000, 512)
    """
    text = str(value)
    match = _SIZE.fullmatch(text) if len(text) <= MAX_CHARS else None
    unit = None if match is None else UNITS.get(match[2].upper())
    is_part_of_byte = unit == 1 and "." in text
    if match is None or unit is None or is_part_of_byte or isinstance(value, bool):
        raise ValueError(
            f"{text[:MAX_CHARS]!r} is not a size: write a number with KiB, MiB, GiB (or KB, MB, GB), "
            "such as 2GiB"
        )
    return int(Fraction(match[1]) * unit)


def show_size(n_bytes: float) -> str:
    """Format `n_bytes` with one decimal in the largest fitting unit.

    >>> show_size(270_000_000), show_size(512)
    ('257.5 MiB', '512 bytes')
    """
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `n`."""
    return -(-n // multiple) * multiple
