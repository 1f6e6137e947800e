"""What the next hours will need, from a server's recorded traffic: the plan's answer, carried forward.

Each recorded hour is estimated as a fluid (`tokenmux.simulator.fluid`), and scaled so that the busiest hour
needs what the plan found by simulation. The forecast and its margin then work on these estimates.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from tokenmux.core.facts import ModelId
from tokenmux.core.request import ServiceLevel
from tokenmux.simulator.fluid import Flow, fluid_devices
from tokenmux.simulator.forecast import COVERED, DAY, ForecastError, error_on, forecast, margin
from tokenmux.simulator.planner.simulated_job import World
from tokenmux.simulator.scenario import Market, true_cost
from tokenmux.workload.trace import Arrival

HOUR_S = 3600.0
LEAST_HOURS = 2
"""One hour to forecast from, and one to compare with."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Devices that the next hours are expected to need."""

    past: tuple[float, ...]
    """What each recorded hour needed, estimated, the newest last."""
    coming: tuple[int, ...]
    """What is expected one hour ahead, two hours ahead, and so on."""
    error: ForecastError

    def sentence(self, gpu: str) -> str:
        hours = ", ".join(map(str, self.coming))
        return (
            f"Next hours, {gpu}: {hours} (forecast from the last hour and the same hour a day before; on the "
            f"recorded {len(self.past)} hours that was off by {self.error.mean_share:.0%} and short in "
            f"{self.error.n_short} of {self.error.n_hours}, so a margin is added that would have covered "
            f"{COVERED:.1%} of what they needed)."
        )


def outlook(world: World, fewest: int, n_hours: int = 6) -> Outlook | None:
    """The outlook of a world that needs `fewest` instances. None if its traffic is shorter than two hours."""
    recorded = int(world.duration_s // HOUR_S)
    if recorded < LEAST_HOURS:
        return None
    first_s = world.duration_s - recorded * HOUR_S
    hours: list[list[Arrival]] = [[] for _ in range(recorded)]
    for arrival in world.arrivals:
        if arrival.request.arrival_s >= first_s:
            hours[min(recorded - 1, int((arrival.request.arrival_s - first_s) // HOUR_S))].append(arrival)
    device = world.hardware.instance(world.market)
    cost = true_cost(world.market, world.hardware, device)
    estimated = [fluid_devices(flows_of(hour, world.market, HOUR_S), cost) for hour in hours]
    busiest = max(estimated)
    scale = world.hardware.n_devices * (fewest / busiest if busiest else 1.0)
    past = tuple(scale * devices for devices in estimated)
    coming = tuple(ceil(_expected(past, ahead) - 1e-9) for ahead in range(1, min(n_hours, DAY) + 1))
    return Outlook(past, coming, error_on(past))


def _expected(past: Sequence[float], ahead: int) -> float:
    """The forecast with its margin. If no hour was recorded so far ahead of another, the margin is that of
    the furthest."""
    return forecast(past, ahead) + margin(past, ahead=min(ahead, len(past) - 1))


def flows_of(arrivals: Sequence[Arrival], market: Market, duration_s: float) -> list[Flow]:
    """The mean traffic of each model; the strictest service level among its requests counts."""
    counts: Counter[ModelId] = Counter()
    n_in: Counter[ModelId] = Counter()
    n_out: Counter[ModelId] = Counter()
    levels: dict[ModelId, ServiceLevel] = {}
    for arrival in arrivals:
        request = arrival.request
        counts[request.model] += 1
        n_in[request.model] += request.n_prompt
        n_out[request.model] += arrival.n_output
        known = levels.get(request.model, request.service)
        levels[request.model] = ServiceLevel(
            min(known.ttft_s, request.service.ttft_s), min(known.tpot_s, request.service.tpot_s)
        )
    return [
        Flow(market.facts[m], n / duration_s, n_in[m] / n, n_out[m] / n, levels[m]) for m, n in counts.items()
    ]
