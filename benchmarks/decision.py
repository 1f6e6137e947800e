"""What one decision of the default policy costs: an instance with 20 live models and 200 live requests.

python -m benchmarks.decision [--quick]
"""

import sys
import time

import numpy as np

from benchmarks.report import Target, finish, spread, table
from benchmarks.workloads import quick
from tokenmux.engine.core.event import Event
from tokenmux.engine.core.plan import Channel, Plan, Step
from tokenmux.engine.policy.interface import InstanceView
from tokenmux.engine.policy.placement import LeastLoaded
from tokenmux.engine.policy.slack import SlackPolicy
from tokenmux.engine.sim.catalogue import architecture
from tokenmux.engine.sim.scenario import market, simulate
from tokenmux.engine.workload.generate import traffic
from tokenmux.engine.workload.lengths import fixed
from tokenmux.engine.workload.trace import arrivals

TARGETS = {"decision_us_p99": Target("20 models and 200 live requests on an instance", at_most=100.0)}


class Timed:
    """The policy with a stopwatch around every answer, while the instance is as full as the target says."""

    name = "slack"

    def __init__(self) -> None:
        self._policy = SlackPolicy()
        self.microseconds: list[float] = []

    def on_event(self, event: Event, view: InstanceView) -> None:
        self._policy.on_event(event, view)

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        began = time.perf_counter()
        plan = self._policy.plan(channel, view)
        seconds = time.perf_counter() - began
        if len(view.live_models) >= 20 and 180 <= len(view.requests) <= 220:
            self.microseconds.append(seconds * 1e6)
        return plan

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        return self._policy.interrupts(step, event, view)


def main() -> None:
    names = [f"model-{index}" for index in range(20)]
    pool = market(dict.fromkeys(names, architecture("qwen2.5-7b")))
    rng = np.random.default_rng(0)
    trace = traffic(rng, dict.fromkeys(names, 0.32), 30.0 if quick(sys.argv) else 120.0, fixed(300, 200))
    policy = Timed()
    simulate(pool, arrivals(trace, pool.max_context), 1, lambda _: ([policy], LeastLoaded()))
    ordered = sorted(policy.microseconds)
    metrics = {
        **spread("decision_us", ordered),
        "decision_us_p99": ordered[int(0.99 * len(ordered))],
        "decisions": len(ordered),
    }
    table("One decision, microseconds", ["measure", "value"], [[k, v] for k, v in metrics.items()])
    finish("decision", metrics, TARGETS)


if __name__ == "__main__":
    main()
