"""A model market: every client of ServeGen's m-large as a model of its own, but for the popular ones, which
have devices of their own anyway.

Most of its models are silent nearly always and come in bursts. Fewest H100s in ten minutes of several days,
and the GPUs that are saved against one device for each model: the worst of these hours counts. The baselines
take many times as long to simulate as `slack`, and are left out unless asked for.

    TOKENMUX_DATA=... python -m benchmarks.market [--quick] [--baselines]
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.plots import bars
from benchmarks.report import Target, finish, table
from benchmarks.workloads import GOAL, data_folder, quick
from tokenmux.core.plan import Channel
from tokenmux.simulator.planner.search import fewest
from tokenmux.simulator.scenario import Market, Outcome, paper_market, simulate
from tokenmux.workload.generate import gamma_with_cv, traffic, zipf_rates
from tokenmux.workload.published import first_appearances
from tokenmux.workload.servegen import WINDOW_S, read_lengths, read_windows, servegen_market
from tokenmux.workload.shape import clipped
from tokenmux.workload.trace import Arrival, Trace, arrivals

TARGETS = {"gpus_saved_share": Target("the paper's deployment saved 82% of its GPUs", at_least=0.82)}
POPULAR_RPS = 1.0
"""A client with more requests per second than this, on the mean of all 14 days, is popular."""

HOURS = (10, 82, 178)
"""Hours of the file: ten in the morning of the first, fourth and eighth day. The market then has 20, 17
and 31 requests per second; the median of all windows is 19."""

DAYS = 14


def servegen(folder: Path) -> tuple[int, dict[str, Trace]]:
    """The number of models in the market, and ten minutes of their traffic at each hour."""
    windows = read_windows(folder / "servegen" / "arrivals.csv.gz", "m-large", 0.0, float("inf"))
    requests: Counter[str] = Counter()
    for window in windows:
        requests[window.client] += window.rate_rps * WINDOW_S  # type: ignore[assignment]
    sporadic = {c for c, n in requests.items() if n / (DAYS * 86400) < POPULAR_RPS}
    lengths = read_lengths(folder / "servegen" / "length_quantiles.csv.gz", "m-large")
    traces = {}
    for hour in HOURS:
        at_s = hour * 3600.0
        now = [window for window in windows if window.start_s == at_s and window.client in sporadic]
        traces[f"hour {hour}"] = servegen_market(np.random.default_rng(hour), now, lengths, at_s)
    return len(sporadic), traces


def generated() -> tuple[int, dict[str, Trace]]:
    """A substitute: 130 models of unequal popularity, in bursts."""
    rates = {f"model-{index}": rate for index, rate in enumerate(zipf_rates(130, 16.0, 1.2))}
    return 130, {"generated": traffic(np.random.default_rng(0), rates, WINDOW_S, process=gamma_with_cv(4))}


def of_paper(trace: Trace) -> tuple[Market, list[Arrival]]:
    """The paper's mix of architectures for the models that appear."""
    market = paper_market(first_appearances(trace))
    trace = clipped(trace, min(market.max_context.values()))
    return market, arrivals(trace, market.max_context)


def main() -> None:
    folder = data_folder()
    n_models, traces = generated() if folder is None else servegen(folder)
    rows: list[list[object]] = []
    gpus: dict[str, dict[str, float]] = {}
    if quick(sys.argv):
        traces = dict(list(traces.items())[:1])
    for name, trace in traces.items():
        market, requests = of_paper(trace)
        for policy in ("slack", "request-level", "aegaeon") if "--baselines" in sys.argv else ("slack",):
            outcomes: dict[int, Outcome] = {}

            def is_enough(n: int, policy: str = policy, outcomes: dict[int, Outcome] = outcomes) -> bool:
                outcomes[n] = simulate(market, requests, n, policy)  # noqa: B023 - called before the loop goes on
                return outcomes[n].summary().tokens_on_time >= GOAL

            n = fewest(is_enough, 4, len(market.facts))
            shape = [name, len(market.facts), len(requests), policy]
            if n is None:
                rows.append([*shape, f"more than {len(market.facts)}", *[""] * 4])
                continue
            summary = outcomes[n].summary()
            busy = [outcomes[n].busy(Channel.COMPUTE), outcomes[n].busy(Channel.COPY_IN)]
            rows.append([*shape, str(n), summary.tokens_on_time, summary.requests_on_time, *busy])
            gpus.setdefault(name, {})[policy] = n
    for group in gpus.values():
        group["a device each"] = n_models
    bars("market", f"Fewest H100 for a market of {n_models} models", "GPUs", gpus)
    table(
        f"A market of {n_models} models: fewest H100 with {GOAL:.0%} of tokens on time in ten minutes",
        ["when", "models asked for", "requests", "policy", "GPUs", "tokens", "requests on time", "compute",
         "copy-in"],
        rows,
    )  # fmt: skip
    metrics: dict[str, float] = {"models": n_models}
    for hour, group in gpus.items():
        for policy, count in group.items():
            metrics[f"gpus_{policy}_{hour}".replace("-", "_").replace(" ", "_")] = count
    needed = [group["slack"] for group in gpus.values() if "slack" in group]
    if len(needed) == len(traces):
        metrics["gpus_saved_share"] = 1 - max(needed) / n_models
    finish("market", metrics, TARGETS)


if __name__ == "__main__":
    main()
