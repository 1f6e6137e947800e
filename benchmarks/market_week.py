"""A week of a model market: hourly traffic, and estimates of the devices that it asks for.

Of each hour the first five minutes are simulated. The rest is estimated as a fluid
(`tokenmux.simulator.fluid`), scaled by what simulations of some hours needed. Models of 32B or less share
instances of one device; those of 70B and 72B share instances of four.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tokenmux.core.facts import ModelId
from tokenmux.core.request import ServiceLevel
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.fluid import Flow, fluid_devices
from tokenmux.simulator.profiles import ProfiledCost
from tokenmux.simulator.scenario import Hardware, Market, Outcome, market, simulate, true_cost
from tokenmux.workload.lengths import CHAT, Lengths
from tokenmux.workload.servegen import WINDOW_S, Window, read_lengths, read_windows, servegen_market
from tokenmux.workload.shape import clipped, window
from tokenmux.workload.trace import Arrival, arrivals

HOUR_S = 3600.0
N_SLOTS = 6
"""Windows of ten minutes in an hour."""
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


@dataclass(frozen=True, slots=True)
class Part:
    """The models that share one kind of instance."""

    market: Market
    hardware: Hardware
    levels: Mapping[str, ServiceLevel]

    @property
    def n_devices(self) -> int:
        return self.hardware.n_devices

    @property
    def cost(self) -> ProfiledCost:
        return true_cost(self.market, self.hardware, self.hardware.instance(self.market))

    def flows(self, windows: Sequence[Window], lengths: Mapping[str, Lengths]) -> list[Flow]:
        """The mean traffic of each of its models in these windows."""
        flows = []
        for w in windows:
            name = f"model-{w.client}"
            if name in self.levels:
                n_in, n_out = mean_lengths(lengths.get(w.client, lengths[""]))
                facts = self.market.facts[ModelId(name)]
                flows.append(Flow(facts, w.rate_rps, n_in, n_out, self.levels[name]))
        return flows

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

    def simulate(self, requests: Sequence[Arrival], n: int, goal: float | None = None) -> Outcome:
        return simulate(self.market, requests, n, hardware=self.hardware, to_the_end=False, goal=goal)


@dataclass(frozen=True, slots=True)
class Slot:
    """Ten minutes of one part's traffic, estimated."""

    devices: float
    """Instances that the fluid asks for, not calibrated."""
    n_tokens: float
    """Output tokens."""


@dataclass(slots=True)
class Week:
    """Traffic by hour, and estimates of what each part of the pool needs for it. It may be longer than a
    week: a pool that serves the second one knows the first."""

    parts: list[Part]
    hours: list[list[Window]]
    """Windows of ten minutes that begin within each hour."""
    lengths: Mapping[str, Lengths]
    simulated_s: float = 300.0
    """How much of each hour is simulated."""
    factors: dict[int, float] = field(default_factory=dict)
    """For each part, devices that simulations needed over those of the fluid."""
    slots: list[list[list[Slot]]] = field(init=False)
    """For each part and hour, its six windows. A silent one asks for nothing."""

    def __post_init__(self) -> None:
        self.slots = []
        for part in self.parts:
            cost = part.cost
            self.slots.append([self._estimated(part, hour, cost) for hour in range(len(self.hours))])

    def _estimated(self, part: Part, hour: int, cost: ProfiledCost) -> list[Slot]:
        slots = []
        for place in range(N_SLOTS):
            start_s = hour * HOUR_S + place * WINDOW_S
            flows = part.flows([w for w in self.hours[hour] if w.start_s == start_s], self.lengths)
            n_tokens = WINDOW_S * sum(flow.rate_rps * flow.output_tokens for flow in flows)
            slots.append(Slot(fluid_devices(flows, cost), n_tokens))
        return slots

    def needed(self, index: int, hour: int) -> float:
        """Instances that the busiest ten minutes of an hour need, calibrated."""
        return self.factors[index] * max(slot.devices for slot in self.slots[index][hour])

    def known(self, index: int, hour: int) -> float:
        """The same, as far as it is known ten minutes before the hour's end."""
        return self.factors[index] * max(slot.devices for slot in self.slots[index][hour][:-1])

    def beginning(self, index: int, hour: int) -> list[Arrival]:
        """What is simulated of an hour."""
        now = [w for w in self.hours[hour] if w.start_s == hour * HOUR_S]
        return self.parts[index].arrivals(now, self.lengths, hour, self.simulated_s)

    def kept(self, index: int, hour: int, n: int, share: float) -> tuple[float, float]:
        """Tokens on time and all tokens of an hour on `n` instances, if this share of the simulated ones is
        on time. In busier windows than the simulated one, what is beyond the pool's capacity is late."""
        slots = self.slots[index][hour]
        on_time = 0.0
        for slot in slots:
            need = self.factors[index] * slot.devices
            fits = slot.devices <= slots[0].devices or need <= n
            on_time += slot.n_tokens * (share if fits else min(share, n / need))
        return on_time, sum(slot.n_tokens for slot in slots)


def mean_lengths(lengths: Lengths) -> tuple[float, float]:
    """Mean input and output in tokens, cut to the market's context."""
    shares = np.linspace(0.05, 0.95, 10)
    n_in, n_out = (
        float(np.mean([min(t.at(s), CONTEXT / 2) for s in shares])) for t in (lengths.input, lengths.output)
    )
    return n_in, n_out


def servegen_week(folder: Path, n_hours: int) -> Week:
    """The sporadic clients of ServeGen's m-large, hour by hour."""
    windows = read_windows(folder / "servegen" / "arrivals.csv.gz", "m-large", 0.0, float("inf"))
    requests: dict[str, float] = {}
    for w in windows:
        requests[w.client] = requests.get(w.client, 0.0) + w.rate_rps * WINDOW_S
    span_s = max(w.start_s for w in windows) + WINDOW_S
    clients = [client for client, n in requests.items() if n / span_s < POPULAR_RPS]
    lengths = read_lengths(folder / "servegen" / "length_quantiles.csv.gz", "m-large")
    return Week(_parts(clients), _by_hour(windows, set(clients), n_hours), lengths)


def generated_week(n_hours: int, n_models: int = 129) -> Week:
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
    for is_large, hardware in ((False, Hardware()), (True, Hardware(n_devices=4))):
        own = {name: kind for name, kind in kinds.items() if (kind == "qwen2.5-72b") == is_large}
        made = market({name: architecture(kind) for name, kind in own.items()})
        copy_s = {
            str(m): f.n_bytes / hardware.n_devices / hardware.copy_bytes_per_s for m, f in made.facts.items()
        }
        wished = {name: LEVELS[place % len(LEVELS)] for place, name in enumerate(own)}
        levels = {name: w if 2 * copy_s[name] <= w.ttft_s else USUAL for name, w in wished.items()}
        parts.append(Part(made, hardware, levels))
    return parts
