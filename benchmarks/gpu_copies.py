"""The section `copies` of `benchmarks.gpu`: bandwidth within the device and over the bus."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_place import Item, Place


def copies(place: Place) -> list[Item]:
    return [
        Item("within_the_device", partial(copy_rate, place)),
        Item("host_to_device", partial(bus_rate, place, True)),
        Item("device_to_host", partial(bus_rate, place, False)),
    ]


def copy_rate(place: Place) -> Mapping[str, Any]:
    """Bytes read plus bytes written, per second. Launched directly: as a node of a captured graph the copy
    takes longer."""
    n_bytes = 1 << (20 if place.interpreted else 30)
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    taken = place.launched(lambda: target.copy_(source))
    return {"bytes": n_bytes, "gb_per_s": 2 * n_bytes / taken["s"] / 1e9, **taken}


def bus_rate(place: Place, into_device: bool) -> Mapping[str, Any]:
    """One large copy from or to pinned memory: the limit of swapping and paging."""
    n_bytes = 1 << (20 if place.interpreted else 29)
    host = torch.zeros(n_bytes, dtype=torch.uint8, pin_memory=not place.interpreted)
    device = torch.zeros(n_bytes, dtype=torch.uint8, device=place.device)
    target, source = (device, host) if into_device else (host, device)
    times = []
    for _ in range(6):
        place.settle()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        place.settle()
        times.append(time.perf_counter() - began)
    best = sorted(times[1:])[2]
    return {"bytes": n_bytes, "gb_per_s": n_bytes / best / 1e9, "s": best}
