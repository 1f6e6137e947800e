"""Items that behave badly, for `test_gpu.py`."""

import os
import time
from collections.abc import Mapping

from benchmarks.gpu_place import Item, Place


def items(place: Place) -> list[Item]:
    assert place.interpreted
    return [
        Item("fine", fine),
        Item("wrong", lambda: {"value": 1 / 0}),
        Item("deadly", lambda: os._exit(7)),
        Item("after", lambda: {"summary": "reached"}),
    ]


def fine() -> Mapping[str, float]:
    print("what it said")
    return {"value": 1.5}


def breaking(_: Place) -> list[Item]:
    def breaks() -> Mapping[str, float]:
        Place.works = lambda _: False  # type: ignore[method-assign]
        raise RuntimeError(f"{os.getpid()}")

    return [Item("breaks", breaks), Item("after", lambda: {"process": f"RuntimeError: {os.getpid()}"})]


def endless(_: Place) -> list[Item]:
    def sleep() -> Mapping[str, float]:
        time.sleep(600)
        return {}

    return [Item("quick", lambda: {"value": 1}), Item("hanging", sleep), Item("late", lambda: {"value": 2})]


def broken(_: Place) -> list[Item]:
    raise ImportError("no such part")
