"""Which tokens a grammar allows, as the draw of a token sees it.

Masks come from elsewhere (`MaskSource`) and take time on a processor: they are asked for when a step begins,
and needed when its forward pass has given the logits.

    begin_masks ──▶ source computes ──────────▶ wait ──▶ Draw.allowed
                    forward pass    ──▶ logits ─────┘
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tokenmux.messages.mask_messages import MaskAnswer, MaskQuestion

TokenBits = npt.NDArray[np.uint8]
"""One bit for each token of a vocabulary, the lowest of each byte first."""


class MaskSource(Protocol):
    """Computes masks for one model, beside whatever the caller does."""

    def begin(self, asked: Sequence[MaskQuestion]) -> Callable[[], Sequence[MaskAnswer]]:
        """Begin to answer. What is returned waits for the answers, one for each question; it is called
        once, before `begin` is called again."""
        ...


@dataclass(slots=True)
class StepConstraint:
    """The grammar of one request within one step. `output` grows with what later iterations draw."""

    source: MaskSource
    grammar_id: str
    output: list[int] = field(default_factory=list)


def begin_masks(constraints: Sequence[StepConstraint | None]) -> Callable[[], Sequence[MaskAnswer | None]]:
    """Ask for the masks of one step, whose requests are of one model. What is returned waits for them; None
    for requests without a grammar."""
    some = [constraint for constraint in constraints if constraint is not None]
    if not some:
        return lambda: (None,) * len(constraints)
    wait = some[0].source.begin([MaskQuestion(one.grammar_id, tuple(one.output)) for one in some])

    def answers() -> list[MaskAnswer | None]:
        masks = iter(wait())
        return [None if constraint is None else next(masks) for constraint in constraints]

    return answers


def without(bits: bytes, forbidden: Collection[int]) -> TokenBits:
    """The tokens of a mask that are not `forbidden`; all of them if they all are: the grammar decides."""
    allowed = np.frombuffer(bits, np.uint8)
    if not forbidden:
        return allowed
    left = allowed.copy()
    for token in forbidden:
        if 0 <= token < 8 * len(left):
            left[token // 8] &= np.uint8(~(1 << token % 8) & 0xFF)
    return left if left.any() else allowed


def unpacked(bits: TokenBits, n_tokens: int) -> npt.NDArray[np.bool_]:
    """A bool for each of `n_tokens`."""
    return np.unpackbits(bits, count=n_tokens, bitorder="little").view(np.bool_)
