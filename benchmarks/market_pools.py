"""Pools for a model market: how large each kind of pool is by the hour, and what it serves of the traffic."""

import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from math import ceil, exp

import numpy as np

from benchmarks.market_week import HOUR_S, Part, Week
from benchmarks.workloads import GOAL
from tokenmux.simulator.fluid import calibration, fluid_devices
from tokenmux.simulator.forecast import forecast, margin
from tokenmux.simulator.planner.search import fewest
from tokenmux.workload.servegen import WINDOW_S
from tokenmux.workload.trace import Arrival

WARM_UP_S = 180.0
"""A device is paid for so long before it serves: a machine's start, and its first models from disk."""
DRAIN_S = 60.0
"""A device is paid for so long after it takes no more requests."""
KEEP_ALIVE_S = 60.0
"""Request-level autoscaling gives a device back so long after a model's last request."""

Task = tuple[int, int, int]
"""Part, hour, and number of instances: what one simulation is about."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Instances of a pool, by part and hour."""

    by_part: list[list[int]]

    def device_hours(self, parts: Sequence[Part]) -> float:
        """What is paid for, with devices that warm up or drain."""
        hours = 0.0
        for part, sizes in zip(parts, self.by_part, strict=True):
            changes = np.diff(sizes)
            moved_s = WARM_UP_S * changes[changes > 0].sum() - DRAIN_S * changes[changes < 0].sum()
            hours += part.n_devices * (sum(sizes) + float(moved_s) / HOUR_S)
        return hours

    def devices(self, parts: Sequence[Part], place: int) -> int:
        """Devices in one hour, the first of them being 0."""
        return sum(part.n_devices * sizes[place] for part, sizes in zip(parts, self.by_part, strict=True))


@dataclass(frozen=True, slots=True)
class Served:
    """What a pool serves."""

    by_hour: list[float]
    """Share of tokens on time."""
    share: float


def calibrate(week: Week, hours: Sequence[int]) -> list[list[object]]:
    """Search the fewest instances in the median hour of each part, in its ninth decile, and in its busiest
    one, by the estimate of what is simulated. Returns a row of a table for each."""
    picked: list[tuple[int, int]] = []
    for index in range(len(week.parts)):
        busy = [hour for hour in hours if week.slots[index][hour][0].devices]
        busy.sort(key=lambda hour: week.slots[index][hour][0].devices)
        last = len(busy) - 1
        picked += [(index, busy[at]) for at in dict.fromkeys((last // 2, last * 9 // 10, last))]
    rows: list[list[object]] = []
    found: dict[int, list[tuple[int, float]]] = {}
    with _processes(week) as pool:
        for (index, hour), (n_requests, n) in zip(picked, pool.map(_least, picked), strict=True):
            if n is None:
                raise RuntimeError(f"no pool serves the first minutes of hour {hour}")
            estimate = week.slots[index][hour][0].devices
            found.setdefault(index, []).append((n, estimate))
            rows.append([f"hour {hour}", week.parts[index].n_devices, n_requests, estimate, n])
    for index, pairs in found.items():
        week.factors[index] = calibration(*zip(*pairs, strict=True))
    return rows


def fixed_pool(week: Week, hours: Sequence[int]) -> Sizes:
    """As many instances as the busiest ten minutes need, all the time; with hindsight."""
    needed = [max(week.needed(i, h) for h in hours) for i in range(len(week.parts))]
    return Sizes([[max(1, ceil(n))] * len(hours) for n in needed])


def elastic_pool(week: Week, hours: Sequence[int]) -> Sizes:
    """What the forecast and its margin ask for ten minutes before each hour begins, from all that was seen by
    then: time enough to warm devices up. The very first hour is given."""
    sizes = []
    for index in range(len(week.parts)):
        past = [week.needed(index, hour) for hour in range(hours[-1] + 1)]
        expected = []
        for hour in hours:
            seen = [*past[: hour - 1], week.known(index, hour - 1)] if hour else past[:1]
            expected.append(forecast(seen) + margin(seen))
        sizes.append([max(1, ceil(n - 1e-9)) for n in expected])
    return Sizes(sizes)


def instances_for_peaks(week: Week, index: int, hours: Sequence[int]) -> int:
    """Instances if each model has its own, enough for its busiest ten minutes."""
    part = week.parts[index]
    cost = part.cost
    most = dict.fromkeys(part.levels, 1)
    for hour in hours:
        for flow in part.flows(week.hours[hour], week.lengths):
            most[str(flow.model.id)] = max(most[str(flow.model.id)], ceil(fluid_devices([flow], cost)))
    return sum(most.values())


def request_level_instances(week: Week, index: int, hour: int) -> float:
    """Mean number of instances that request-level autoscaling holds: each model with a request, or whose last
    one ended less than the keep-alive ago, and while its weights come from disk."""
    part = week.parts[index]
    held = 0.0
    for flow in part.flows(week.hours[hour], week.lengths):
        load_s = flow.model.n_bytes / part.hardware.disk_bytes_per_s
        busy_s = flow.output_tokens * flow.service.tpot_s + load_s + KEEP_ALIVE_S
        held += 1 - exp(-flow.rate_rps * busy_s)
    return held * WINDOW_S / HOUR_S


def serve(week: Week, pools: Iterable[Sizes], hours: Sequence[int], simulated: Iterable[int]) -> list[Served]:
    """What each pool serves in those of its `hours` that are simulated. A part, hour and size that several
    pools share is simulated once."""
    pools, places = list(pools), [hours.index(hour) for hour in simulated]
    parts = range(len(week.parts))
    tasks = {(i, hours[place], pool.by_part[i][place]) for pool in pools for i in parts for place in places}
    shares = _simulated(week, tasks)
    found = []
    for pool in pools:
        by_hour, on_time, total = [], 0.0, 0.0
        for place in places:
            at = [(i, hours[place], pool.by_part[i][place]) for i in parts]
            kept, tokens = np.sum([week.kept(*task, shares[task]) for task in at], axis=0)
            on_time, total = on_time + float(kept), total + float(tokens)
            by_hour.append(float(kept / tokens) if tokens else 1.0)
        found.append(Served(by_hour, on_time / total if total else 1.0))
    return found


def _simulated(week: Week, tasks: set[Task]) -> dict[Task, float]:
    """Share of simulated tokens that are on time, for each task; the longest simulations first."""
    ordered = sorted(tasks, key=lambda task: (-week.slots[task[0]][task[1]][0].n_tokens, task))
    shares: dict[Task, float] = {}
    with _processes(week) as pool:
        waiting = {pool.submit(_share, task): task for task in ordered}
        for done in as_completed(waiting):
            shares[waiting[done]] = done.result()
            if len(shares) % 50 == 0 or len(shares) == len(tasks):
                print(f"{len(shares)} of {len(tasks)} simulations", file=sys.stderr, flush=True)
    return shares


_week: Week
"""The week of a process that simulates."""


def _processes(week: Week) -> ProcessPoolExecutor:
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(n, initializer=_begin, initargs=(week,))


def _begin(week: Week) -> None:
    global _week
    _week = week


def _share(task: Task) -> float:
    index, hour, n = task
    requests = _week.beginning(index, hour)
    return _week.parts[index].simulate(requests, n).summary().tokens_on_time if requests else 1.0


def _least(at: tuple[int, int]) -> tuple[int, int | None]:
    """Number of requests in what is simulated of a part's hour, and the fewest instances for them."""
    index, hour = at
    part, requests = _week.parts[index], _week.beginning(index, hour)
    first = max(1, ceil(1.5 * _week.slots[index][hour][0].devices))
    return len(requests), fewest(partial(_keeps, part, requests), 1, len(part.levels), first)


def _keeps(part: Part, requests: Sequence[Arrival], n: int) -> bool:
    outcome = part.simulate(requests, n, GOAL)
    return not outcome.missed and outcome.summary().tokens_on_time >= GOAL
