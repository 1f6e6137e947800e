"""What one decision of the default policy costs: an instance with 20 live models and 200 live requests.

python -m benchmarks.decision [--quick]
"""

import sys
import time
from dataclasses import replace

import numpy as np

from benchmarks.report import Target, finish, spread, table
from benchmarks.workloads import quick
from tokenmux.core.event import Event
from tokenmux.core.plan import Channel, Plan, Step
from tokenmux.scheduler.metrics.summary import percentile
from tokenmux.scheduler.policy.instance_policy import InstanceView
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.scenario import market, simulate
from tokenmux.workload.generate import traffic
from tokenmux.workload.lengths import fixed
from tokenmux.workload.trace import arrivals

TARGETS = {"decision_us_p99": Target("20 models and 200 live requests on an instance", at_most=100.0)}


class Timed:
    """The policy with a stopwatch around every answer, while the instance is as full as the target says.

    The stopwatch counts processor time: on a busy machine one answer in a hundred is interrupted by another
    process.
    """

    name = "slack"

    def __init__(self) -> None:
        self._policy = SlackPolicy()
        self.microseconds: list[float] = []

    def on_event(self, event: Event, view: InstanceView) -> None:
        self._policy.on_event(event, view)

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        began = time.thread_time()
        plan = self._policy.plan(channel, view)
        seconds = time.thread_time() - began
        if len(view.live_models) >= 20 and 180 <= len(view.requests) <= 220:
            self.microseconds.append(seconds * 1e6)
        return plan

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        return self._policy.interrupts(step, event, view)


def measure(n_tenants: int, duration_s: float) -> list[float]:
    """Microseconds of every decision, in ascending order."""
    names = [f"model-{index}" for index in range(20)]
    pool = market(dict.fromkeys(names, architecture("qwen2.5-7b")))
    trace = traffic(np.random.default_rng(0), dict.fromkeys(names, 0.32), duration_s, fixed(300, 200))
    trace = [replace(line, tenant=f"tenant-{index % n_tenants}") for index, line in enumerate(trace)]
    policy = Timed()
    simulate(pool, arrivals(trace, pool.max_context), 1, lambda _: ([policy], LeastLoaded()))
    return sorted(policy.microseconds)


def main() -> None:
    duration_s = 30.0 if quick(sys.argv) else 120.0
    alone, shared = measure(1, duration_s), measure(8, duration_s)
    metrics = {
        **spread("decision_us", alone),
        "decision_us_p99": percentile(alone, 0.99),
        "decisions": len(alone),
        **spread("decision_8_tenants_us", shared),
        "decision_8_tenants_us_p99": percentile(shared, 0.99),
    }
    table("One decision, microseconds", ["measure", "value"], [[k, v] for k, v in metrics.items()])
    finish("decision", metrics, TARGETS)


if __name__ == "__main__":
    main()
