"""Which layers see only a sliding window: from `attention.sliding_window` and its pattern to transformers'
fields."""

from typing import Any

from tokenmux.models.catalogue.gguf.keys import Keys

_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


def everywhere(keys: Keys) -> int | None:
    """The window of an architecture in which all layers have the same one; None without a window."""
    if isinstance(pattern := keys.raw(_PATTERN), list) and not all(pattern):
        keys.unsupported(_PATTERN, "has layers without a window")
    elif isinstance(pattern, int) and pattern:
        keys.unsupported(_PATTERN, f"is {pattern}")
    return keys.integer(_WINDOW, 0, least=0) or None


def nowhere(keys: Keys, context: int) -> None:
    """Check that an architecture without windows has none: the key is 0, or no context reaches it."""
    if keys.integer(_WINDOW, 0, least=0) in range(1, context):
        keys.unsupported(_WINDOW, f"is {keys.raw(_WINDOW)}")
    keys.ignore(_PATTERN)


def alternating(keys: Keys, n_layers: int, period: int) -> dict[str, Any]:
    """Every `period`-th layer sees everything, the others a window. The file may give another pattern: a
    number or a list."""
    window = keys.integer(_WINDOW)
    pattern = keys.raw(_PATTERN)
    if pattern is None:
        pattern = period
    if isinstance(pattern, list):
        sliding = [
            bool(value) for value in keys.several(_PATTERN, type(pattern[0]) if pattern else bool, n_layers)
        ]
    else:
        period = keys.integer(_PATTERN, period)
        sliding = [(layer + 1) % period != 0 for layer in range(n_layers)]
    return {
        "sliding_window": window,
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in sliding],
    }
