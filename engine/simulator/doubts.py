"""Doubts about a simulation, as switches: each makes it more pessimistic, and all together give the honest
figure.

Step times come from the Aegaeon artifact, which measured vLLM in eager mode with one model on the device;
copies are sizes over a rate. The artifact did not measure what a change of models costs, or how much longer
steps take while weights are copied.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Doubts:
    """What a simulation adds to measured times. By default nothing."""

    switch_s: float = 0.0
    """Seconds before a step of another model than the one that stepped last."""
    beside_copy: float = 1.0
    """Duration of a step that begins beside a copy between host and device, relative to the same step
    alone."""
    activation_s: float = 0.0
    """Seconds added to the copy of a model's weights."""
    block_copy_s: float = 0.0
    """Seconds added for each KV block that is paged in or out: each is a copy of its own."""
    learned: bool = False
    """The scheduler does not know how long steps and copies take: it starts from model and device facts
    and learns, as in a running engine."""

    def stretched(
        self, ends_s: tuple[float, ...], begun_s: float, switches: bool, beside_copy: bool
    ) -> tuple[float, ...]:
        """When the iterations of a step end under these doubts, if they would end at `ends_s` without."""
        start_s = begun_s + (self.switch_s if switches else 0.0)
        factor = self.beside_copy if beside_copy else 1.0
        if start_s == begun_s and factor == 1.0:
            return ends_s
        return tuple(start_s + factor * (end_s - begun_s) for end_s in ends_s)


SURE = Doubts()
ALL_DOUBTS = Doubts(switch_s=0.005, beside_copy=1.1, activation_s=0.025, learned=True)
CRAMPED = 0.8
"""Share of device memory that is managed if memory is doubted too: 64 of 80 GB."""
