"""The interpreter's garbage collector in a process where a millisecond counts."""

import gc

_YOUNG_OBJECTS = 50_000
"""New objects between two looks at the youngest. A step makes hundreds, nearly all freed without the
collector: with Python's 700 it looked several times a step, and in the slowest hundredth of steps that was
a tenth of the engine's time."""


def settle() -> None:
    """What exists now stays: it is never looked through again, and what comes is looked through seldom.

    What torch, transformers and skeletons keep is never garbage, and looking through it, which the
    interpreter does now and then in the middle of a step, takes 0.3 s with one model and two microseconds
    once frozen.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 10, 10)
