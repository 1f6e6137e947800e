"""The environment of an executor's process: how many threads its steps get, and how it copies."""

import os
import sys
from collections.abc import Mapping

_TUNABLES = "GLIBC_TUNABLES"
_NON_TEMPORAL = "glibc.cpu.x86_non_temporal_threshold"

NON_TEMPORAL_BYTES = 768 << 10
"""Copies of at least this size bypass the cache, and those of at least 16 times as much (a chunk of weights)
go four pages at a time. By default glibc decides by the size of the last cache, which in a virtual machine is
all of a large processor's: copies of 190 MB there, so no chunk, went past it. Chunks of 16 MiB took 40 ms
for 270 MB, and 23 so; out of memory that processes share 43, and 25."""


def executor_environment(ours: Mapping[str, str], *, n_devices: int = 1) -> dict[str, str]:
    """The environment of the process for one of `n_devices` devices of this machine, given `ours`.

    It leaves one core to others, and its OpenMP threads sleep while they wait, unless the operator decided
    otherwise. A server has more to do than steps: copies, messages, the front, its clients. Beside one busy
    process on two cores, a step of SmolLM2 took 18 ms with one thread, 22 to 35 with two that sleep while
    they wait for each other, and 32 to 52 with two that spin.
    """
    n_threads = threads_of_step(len(os.sched_getaffinity(0)), n_devices)
    defaults = {"OMP_NUM_THREADS": str(n_threads), "OMP_WAIT_POLICY": "passive"}
    chosen = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        _TUNABLES: _with_non_temporal_copies(ours.get(_TUNABLES, "")),
    }
    return {**defaults, **ours, **chosen}


def _with_non_temporal_copies(tunables: str) -> str:
    if _NON_TEMPORAL in tunables:
        return tunables
    return ":".join(filter(None, (tunables, f"{_NON_TEMPORAL}={NON_TEMPORAL_BYTES}")))


def threads_of_step(n_cores: int, n_devices: int = 1) -> int:
    """Number of threads for a step on a machine of `n_cores` cores where `n_devices` step at once: an equal
    part of all cores but one, or fewer, so that it is a power of two or three times one.

    Layers divide evenly among that many. With 5, 7, 11, 13 or 15 threads products are exact by row for fewer
    rows at a time, if at all.
    """
    fitting = {1 << i for i in range(12)} | {3 << i for i in range(12)}
    return max(n for n in fitting if n <= max(1, (n_cores - 1) // n_devices))
