"""What a simulation may be too kind about, as switches: each makes it more pessimistic, and all of them
together make the honest figure.

Step times come from the Aegaeon artifact, which measured vLLM in eager mode, one model on the device; copies
are sizes over a rate. Nobody measured there what it costs to go from one model to another, or how much longer
steps take while weights are copied beside them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Doubts:
    """By default there are none."""

    switch_s: float = 0.0
    """Before a step of another model than the one that stepped last."""
    beside_copy: float = 1.0
    """How many times as long a step takes that begins beside a copy between host and device."""
    activation_s: float = 0.0
    """On top of the copy of a model's weights."""
    learned: bool = False
    """The scheduler is not told how long steps and copies take: it begins with sizes and speeds, and
    learns, as in a running engine."""

    def stretched(
        self, ends_s: tuple[float, ...], begun_s: float, switches: bool, beside_copy: bool
    ) -> tuple[float, ...]:
        """When the iterations of a step end that would end at `ends_s`."""
        start_s = begun_s + (self.switch_s if switches else 0.0)
        factor = self.beside_copy if beside_copy else 1.0
        if start_s == begun_s and factor == 1.0:
            return ends_s
        return tuple(start_s + factor * (end_s - begun_s) for end_s in ends_s)


SURE = Doubts()
ALL_DOUBTS = Doubts(switch_s=0.005, beside_copy=1.1, activation_s=0.025, learned=True)
CRAMPED = 0.8
"""Share of device memory that is managed where doubts concern memory too: 64 of 80 GB."""
