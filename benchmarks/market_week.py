"""A week of a model market: hourly traffic, devices that it asks for, and what a pool of some size serves.

Of each hour the first five minutes are simulated. The rest is estimated as a fluid
(`tokenmux.simulator.fluid`), scaled by what simulations of some hours needed. Models of 32B or less share
instances of one device; those of 70B and 72B share instances of four.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, exp
from pathlib import Path

import numpy as np

from benchmarks.workloads import GOAL
from tokenmux.core.request import ServiceLevel
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.fluid import Flow, calibration, fluid_devices
from tokenmux.simulator.planner.search import fewest
from tokenmux.simulator.scenario import Hardware, Market, Outcome, market, simulate, true_cost
from tokenmux.workload.lengths import CHAT, Lengths
from tokenmux.workload.servegen import WINDOW_S, Window, read_lengths, read_windows, servegen_market
from tokenmux.workload.shape import clipped, window
from tokenmux.workload.trace import Arrival, arrivals

HOUR_S = 3600.0
POPULAR_RPS = 1.0
"""A client with more requests per second than this, on the mean of all days, has devices of its own."""
CONTEXT = 4096
"""Longest request in tokens."""
SIZES = (
    ("qwen2.5-1.5b", 4), ("llama3.2-3b", 5), ("qwen2.5-7b", 6), ("qwen2.5-14b", 3), ("qwen2.5-32b", 1),
    ("qwen2.5-72b", 1),
)  # fmt: skip
"""Of every twenty models, how many have this architecture."""
USUAL, INTERACTIVE, PATIENT = ServiceLevel(), ServiceLevel(2.0, 0.05), ServiceLevel(60.0, 0.5)
LEVELS = (USUAL, USUAL, INTERACTIVE, PATIENT)
"""Classes of service, by model in turn. A model whose weights take more than half of the interactive TTFT to
copy is as usual instead: whatever shared a device with it, it would be late."""
KEEP_ALIVE_S = 60.0
"""Request-level autoscaling gives a device back so long after a model's last request."""


@dataclass(frozen=True, slots=True)
class Part:
    """The models that share one kind of instance."""

    market: Market
    hardware: Hardware
    levels: Mapping[str, ServiceLevel]

    @property
    def n_devices(self) -> int:
        return self.hardware.n_devices

    def arrivals(
        self, windows: Sequence[Window], lengths: Mapping[str, Lengths], seed: int, duration_s: float
    ) -> list[Arrival]:
        """The beginning of an hour that begins with these windows."""
        own = [w for w in windows if f"model-{w.client}" in self.levels]
        trace = servegen_market(np.random.default_rng(seed), own, lengths, own[0].start_s) if own else []
        trace = clipped(window(trace, 0.0, duration_s), CONTEXT)
        levels = self.levels
        return [
            Arrival(replace(a.request, service=levels[a.request.model]), a.n_output)
            for a in arrivals(trace, self.market.max_context)
        ]

    def simulate(self, requests: Sequence[Arrival], n: int, policy: str = "slack") -> Outcome:
        return simulate(self.market, requests, n, policy, self.hardware, to_the_end=False)


@dataclass(slots=True)
class Week:
    """Traffic by hour, and what each part of the pool needs for it."""

    parts: list[Part]
    hours: list[list[Window]]
    """Windows of ten minutes that begin within each hour."""
    lengths: Mapping[str, Lengths]
    simulated_s: float = 300.0
    """How much of each hour is simulated."""
    factors: dict[int, float] = field(default_factory=dict)
    """For each part, devices that simulations needed over those of the fluid."""

    def flows(self, part: Part, windows: Sequence[Window]) -> list[Flow]:
        flows = []
        for w in windows:
            name = f"model-{w.client}"
            if name in part.levels:
                n_in, n_out = mean_lengths(self.lengths.get(w.client, self.lengths[""]))
                facts = part.market.facts[name]  # type: ignore[index]
                flows.append(Flow(facts, w.rate_rps, n_in, n_out, part.levels[name]))
        return flows

    def fluid(self, part: Part, windows: Sequence[Window]) -> float:
        cost = true_cost(part.market, part.hardware, part.hardware.instance(part.market))
        return fluid_devices(self.flows(part, windows), cost)

    def needed(self, index: int, hour: int) -> float:
        """Instances that the busiest ten minutes of an hour need, calibrated."""
        return self.factors[index] * max(self._by_window(index, hour), default=0.0)

    def _by_window(self, index: int, hour: int) -> list[float]:
        starts = sorted({w.start_s for w in self.hours[hour]})
        part = self.parts[index]
        return [self.fluid(part, [w for w in self.hours[hour] if w.start_s == at_s]) for at_s in starts]

    def first(self, index: int, hour: int) -> list[Arrival]:
        """What is simulated of an hour."""
        windows = self.hours[hour]
        start_s = min((w.start_s for w in windows), default=0.0)
        now = [w for w in windows if w.start_s == start_s]
        return self.parts[index].arrivals(now, self.lengths, hour, self.simulated_s)

    def calibrate(self, at: Sequence[int]) -> list[list[object]]:
        """Search the fewest instances at these hours. Returns a row of a table for each."""
        rows: list[list[object]] = []
        for index, part in enumerate(self.parts):
            found, estimated = [], []
            for hour in at:
                requests = self.first(index, hour)
                if not requests:
                    continue
                now = self._by_window(index, hour)[0]
                keeps = partial(self._keeps, part, requests)
                n = fewest(keeps, 1, len(part.levels), max(1, ceil(2 * now)))
                if n is not None:
                    found.append(n)
                    estimated.append(now)
                    rows.append([f"hour {hour}", part.n_devices, len(requests), now, n])
            if not found:
                raise RuntimeError(f"no pool of {part.n_devices}-device instances serves any of hours {at}")
            self.factors[index] = max(1.0, calibration(found, estimated))
        return rows

    @staticmethod
    def _keeps(part: Part, requests: Sequence[Arrival], n: int) -> bool:
        outcome = simulate(part.market, requests, n, hardware=part.hardware, to_the_end=False, goal=GOAL)
        return not outcome.missed and outcome.summary().tokens_on_time >= GOAL

    def served(self, index: int, hour: int, n: int) -> tuple[float, float]:
        """Tokens on time and all tokens of an hour on `n` instances: five minutes simulated, the rest
        estimated: what is beyond the pool's capacity is late."""
        requests = self.first(index, hour)
        if not requests:
            return 0.0, 0.0
        if n == 0:
            return 0.0, float(sum(a.n_output for a in requests)) * HOUR_S / self.simulated_s
        summary = self.parts[index].simulate(requests, n).summary()
        share, n_tokens = summary.tokens_on_time, summary.n_tokens
        by_window = self._by_window(index, hour)
        first = by_window[0] or 1.0
        on_time = total = 0.0
        for devices in by_window:
            tokens = n_tokens * WINDOW_S / self.simulated_s * devices / first
            need = self.factors[index] * devices
            kept = share if devices <= first or need <= n else min(share, n / need)
            on_time += kept * tokens
            total += tokens
        return on_time, total

    def peaks(self, index: int) -> float:
        """Instances if each model has its own, enough for its busiest ten minutes."""
        part = self.parts[index]
        cost = true_cost(part.market, part.hardware, part.hardware.instance(part.market))
        most = dict.fromkeys(part.levels, 1)
        for hour in self.hours:
            for flow in self.flows(part, hour):
                most[str(flow.model.id)] = max(most[str(flow.model.id)], ceil(fluid_devices([flow], cost)))
        return sum(most.values())

    def request_level(self, index: int, hour: int) -> float:
        """Mean number of instances that request-level autoscaling holds: each model with a request, or whose
        last one ended less than the keep-alive ago, and while its weights come from disk."""
        part = self.parts[index]
        held = 0.0
        for flow in self.flows(part, self.hours[hour]):
            load_s = flow.model.n_bytes / part.hardware.disk_bytes_per_s
            busy_s = flow.output_tokens * flow.service.tpot_s + load_s + KEEP_ALIVE_S
            held += 1 - exp(-flow.rate_rps * busy_s)
        return held * WINDOW_S / HOUR_S


def mean_lengths(lengths: Lengths) -> tuple[float, float]:
    """Mean input and output in tokens, cut to the market's context."""
    shares = np.linspace(0.05, 0.95, 10)
    n_in, n_out = (
        float(np.mean([min(t.at(s), CONTEXT / 2) for s in shares])) for t in (lengths.input, lengths.output)
    )
    return n_in, n_out


def servegen_week(folder: Path, n_hours: int = 168) -> Week:
    """The sporadic clients of ServeGen's m-large, hour by hour."""
    windows = read_windows(folder / "servegen" / "arrivals.csv.gz", "m-large", 0.0, float("inf"))
    requests: dict[str, float] = {}
    for w in windows:
        requests[w.client] = requests.get(w.client, 0.0) + w.rate_rps * WINDOW_S
    span_s = max(w.start_s for w in windows) + WINDOW_S
    clients = [client for client, n in requests.items() if n / span_s < POPULAR_RPS]
    lengths = read_lengths(folder / "servegen" / "length_quantiles.csv.gz", "m-large")
    return Week(_parts(clients), _by_hour(windows, set(clients), n_hours), lengths)


def generated_week(n_hours: int = 168, n_models: int = 129) -> Week:
    """A substitute: rates that follow the day, and models that are silent for most hours."""
    rng = np.random.default_rng(0)
    clients = [str(index) for index in range(n_models)]
    popularity = 12.0 / np.arange(1, n_models + 1)
    windows = []
    for index, client in enumerate(clients):
        for slot in range(n_hours * 6):
            day = 1 + 0.6 * np.sin(2 * np.pi * slot / 144)
            if rng.random() < 0.25:
                windows.append(Window(client, slot * WINDOW_S, float(popularity[index] * day), None))
    return Week(_parts(clients), _by_hour(windows, set(clients), n_hours), {"": CHAT})


def _by_hour(windows: Sequence[Window], clients: set[str], n_hours: int) -> list[list[Window]]:
    hours: list[list[Window]] = [[] for _ in range(n_hours)]
    for w in windows:
        hour = int(w.start_s // HOUR_S)
        if w.client in clients and hour < n_hours:
            hours[hour].append(w)
    return hours


def _parts(clients: Sequence[str]) -> list[Part]:
    palette = [name for name, count in SIZES for _ in range(count)]
    order = np.random.default_rng(7).permutation(len(clients))
    kinds = {f"model-{clients[i]}": palette[place % len(palette)] for place, i in enumerate(order)}
    parts = []
    for is_large, hardware in ((False, Hardware()), (True, Hardware(n_devices=4, instances_per_host=2))):
        own = {name: kind for name, kind in kinds.items() if (kind == "qwen2.5-72b") == is_large}
        made = market({name: architecture(kind) for name, kind in own.items()})
        copy_s = {
            str(m): f.n_bytes / hardware.n_devices / hardware.copy_bytes_per_s for m, f in made.facts.items()
        }
        wished = {name: LEVELS[place % len(LEVELS)] for place, name in enumerate(own)}
        levels = {name: w if 2 * copy_s[name] <= w.ttft_s else USUAL for name, w in wished.items()}
        parts.append(Part(made, hardware, levels))
    return parts
