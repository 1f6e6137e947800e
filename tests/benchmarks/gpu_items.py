"""Items that behave badly, for `test_gpu.py`."""

import os
import time
from collections.abc import Mapping

from benchmarks.gpu_place import Item, Place


def items(place: Place) -> list[Item]:
    assert place.interpreted
    return [
        Item("fine", lambda: {"value": 1.5}),
        Item("wrong", lambda: {"value": 1 / 0}),
        Item("deadly", lambda: os._exit(7)),
        Item("after", lambda: {"summary": "reached"}),
    ]


def endless(_: Place) -> list[Item]:
    def sleep() -> Mapping[str, float]:
        time.sleep(600)
        return {}

    return [Item("quick", lambda: {"value": 1}), Item("hanging", sleep), Item("late", lambda: {"value": 2})]


def broken(_: Place) -> list[Item]:
    raise ImportError("no such part")
