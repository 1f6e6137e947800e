"""The lead over the paper's scheduler under other assumptions: step times, copy speed, lengths, bursts.

TOKENMUX_DATA=... python -m benchmarks.robustness [--quick]
"""

import sys

import numpy as np

from benchmarks.plots import bars
from benchmarks.report import Target, finish, table
from benchmarks.workloads import paper_file, quick
from tokenmux.simulator.scenario import Hardware, Market, paper_market, simulate
from tokenmux.workload.generate import gamma_with_cv, traffic
from tokenmux.workload.shape import clipped
from tokenmux.workload.trace import Arrival, arrivals

N_MODELS, RATE, N_GPUS = 80, 0.1, 10
CASES = {
    "as_measured": "as\nmeasured",
    "steps_25_slower": "steps 25%\nslower",
    "steps_25_faster": "steps 25%\nfaster",
    "copies_12_GB_s": "copies at\n12 GB/s",
    "inputs_doubled": "inputs\ndoubled",
    "outputs_doubled": "outputs\ndoubled",
    "bursts_cv_3": "bursts,\nCV 3",
    "bursts_cv_6": "bursts,\nCV 6",
}
"""What the plot calls each case."""


def bursty(cv: float) -> tuple[Market, list[Arrival]]:
    """The same rates with Gamma gaps of this coefficient of variation."""
    names = [f"model-{index}" for index in range(N_MODELS)]
    market = paper_market(names)
    trace = traffic(np.random.default_rng(0), dict.fromkeys(names, RATE), 120.0, process=gamma_with_cv(cv))
    return market, arrivals(clipped(trace, min(market.max_context.values())), market.max_context)


def main() -> None:
    file = paper_file(N_MODELS, RATE)
    cases: dict[str, tuple[tuple[Market, list[Arrival]], Hardware]] = {
        "as_measured": (file, Hardware()),
        "steps_25_slower": (file, Hardware(slower=1.25)),
        "steps_25_faster": (file, Hardware(slower=0.75)),
        "copies_12_GB_s": (file, Hardware(copy_bytes_per_s=12e9)),
        "inputs_doubled": (paper_file(N_MODELS, RATE, input_factor=2), Hardware()),
        "outputs_doubled": (paper_file(N_MODELS, RATE, output_factor=2), Hardware()),
        "bursts_cv_3": (bursty(3), Hardware()),
        "bursts_cv_6": (bursty(6), Hardware()),
    }
    if quick(sys.argv):
        cases = dict(list(cases.items())[:3])
    shares: dict[str, dict[str, float]] = {}
    for name, ((market, requests), hardware) in cases.items():
        shares[name] = {
            policy: simulate(market, requests, N_GPUS, policy, hardware).summary().tokens_on_time
            for policy in ("slack", "aegaeon")
        }
    title = f"{N_MODELS} models at {RATE} requests/s on {N_GPUS} H100"
    by_case = {CASES[name]: share for name, share in shares.items()}
    bars("robustness", title, "share of tokens on time", by_case)
    rows = [[name, *share.values()] for name, share in shares.items()]
    table(f"{title}: tokens on time", ["case", "slack", "aegaeon"], rows)
    metrics = {f"lead_{name}": share["slack"] - share["aegaeon"] for name, share in shares.items()}
    finish("robustness", metrics, {key: Target("the lead stays", at_least=0.0) for key in metrics})


if __name__ == "__main__":
    main()
