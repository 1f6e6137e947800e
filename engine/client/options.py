"""What may be said of a generation besides model and prompt."""

from collections.abc import Sequence
from typing import TypedDict


class GenerateOptions(TypedDict, total=False):
    """Left out, or None: the server's default."""

    max_tokens: int | None
    """At least 1; prompt and output together must fit into the model's context."""
    min_tokens: int
    """Nothing ends the generation before so many tokens."""
    temperature: float
    """0, the default, is greedy."""
    top_k: int
    """Draw among the k likeliest; 0: no limit."""
    top_p: float | None
    """Draw among the likeliest that together have this probability."""
    seed: int | None
    """The same seed gives the same tokens; left out, the server draws one and tells it."""
    stop: str | Sequence[str]
    """Text that ends the generation, and is not returned."""
    stop_token_ids: Sequence[int]
    ignore_end_tokens: bool
    """Go on past the model's own end."""
    ttft_s: float | None
    """Seconds in which the first token is due."""
    tpot_s: float | None
    """Seconds for each token after it."""
    tenant: str
    weight: float | None
    """Share relative to others; higher is sooner."""
