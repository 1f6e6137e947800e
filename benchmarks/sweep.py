"""One sweep of many simulations, for benchmarks that plot the share of tokens on time, by policy."""

from collections.abc import Callable, Iterable

from benchmarks.plots import lines
from benchmarks.report import table
from benchmarks.workloads import GOAL
from tokenmux.scheduler.metrics.summary import Summary
from tokenmux.simulator.scenario import Hardware, Market, simulate
from tokenmux.workload.trace import Arrival

POLICIES = ("slack", "aegaeon", "request-level")


def sweep(
    name: str,
    title: str,
    x_label: str,
    points: Iterable[float],
    workload: Callable[[float], tuple[Market, list[Arrival]]],
    n_gpus: int = 16,
    hardware: Hardware | None = None,
) -> dict[str, list[tuple[float, Summary]]]:
    """Simulate every point under every policy; print the table and write the plot."""
    results: dict[str, list[tuple[float, Summary]]] = {policy: [] for policy in POLICIES}
    for point in points:
        market, arrivals = workload(point)
        for policy in POLICIES:
            outcome = simulate(market, arrivals, n_gpus, policy, hardware or Hardware())
            results[policy].append((point, outcome.summary()))
    rows = [
        [
            point,
            policy,
            summary.tokens_on_time,
            summary.requests_on_time,
            summary.artifact_attainment,
            summary.ttft_p50_s,
            summary.ttft_p99_s,
        ]
        for policy, summaries in results.items()
        for point, summary in summaries
    ]
    table(title, [x_label, "policy", "tokens", "requests", "artifact's", "TTFT p50 s", "TTFT p99 s"], rows)
    curves = {
        policy: [(point, summary.tokens_on_time) for point, summary in summaries]
        for policy, summaries in results.items()
    }
    lines(name, title, x_label, curves, GOAL)
    return results


def edge(summaries: list[tuple[float, Summary]], share: Callable[[Summary], float], goal: float) -> float:
    """The largest point up to which every point keeps the goal; 0 if the first does not."""
    kept = 0.0
    for point, summary in summaries:
        if share(summary) < goal:
            break
        kept = point
    return kept
