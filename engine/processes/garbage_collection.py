"""The interpreter's garbage collector in a process where a millisecond counts."""

import gc

_YOUNG_OBJECTS = 50_000
"""New objects between two collections of the youngest generation. A step makes hundreds, nearly all freed
without the collector: with Python's 700 it ran several times per step, and in the slowest hundredth of steps
that was a tenth of the engine's time."""


def settle() -> None:
    """Exclude all present objects from garbage collection, and collect new ones rarely.

    What torch, transformers and skeletons keep is never garbage. A collection of it, which the interpreter
    sometimes starts in the middle of a step, takes 0.3 s with one model and two microseconds once frozen. In
    a front, collections were a sixth of its processor time.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 10, 10)
