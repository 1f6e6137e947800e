"""Sizes on the command line."""

from tokenmux.core.errors import ConfigError


def memory_size(text: str) -> int:
    """A size in bytes that a message can hold. Raises ConfigError."""
    from tokenmux.core.sizes import parse_size

    try:
        n_bytes = parse_size(text)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not 0 < n_bytes < 1 << 63:
        raise ConfigError(f"{text} is not a valid size of memory: it must be more than 0 and less than 8 EiB")
    return n_bytes


LEAST_SPEED, MOST_SPEED = 10**6, 10**14
"""Bytes per second: a slow network disk, and a hundred times what memory does."""


def speed(text: str) -> int:
    """A size as bytes per second. Raises ConfigError."""
    bytes_per_s = memory_size(text)
    if not LEAST_SPEED <= bytes_per_s <= MOST_SPEED:
        raise ConfigError(f"{text} per second is not a valid speed: it must be 1MB to 100TB")
    return bytes_per_s
