"""How many GPUs does a catalogue need? Simulate the scheduler on pools of growing size until enough tokens
are on time.

    python examples/plan_a_pool.py

`tokenmux plan` does this and more; the program shows the parts that it is made of.
"""

import numpy as np

from tokenmux.simulator.architectures import architecture
from tokenmux.simulator.scenario import Hardware, Market, market, simulate
from tokenmux.workload.generate import traffic
from tokenmux.workload.trace import Arrival, arrivals

SECONDS = 120.0
GOAL = 0.99
"""Share of tokens that are to come by their deadlines: 10 s to the first one, 100 ms for each one after
it."""


def small_catalogue() -> Market:
    """Twelve models of 7 billion parameters, and two of 14."""
    kinds = {f"seven-{i}": architecture("qwen2.5-7b") for i in range(12)}
    return market(kinds | {f"fourteen-{i}": architecture("qwen2.5-14b") for i in range(2)})


def traffic_for(catalogue: Market) -> list[Arrival]:
    """One request every ten seconds for each model, at random; the same every time."""
    rates = {str(model): 0.1 for model in catalogue.facts}
    trace = traffic(np.random.default_rng(7), rates, SECONDS)
    return arrivals(trace, catalogue.max_context)


def main() -> None:
    catalogue = small_catalogue()
    requests = traffic_for(catalogue)
    for n_gpus in range(1, 9):
        outcome = simulate(catalogue, requests, n_gpus, "slack", Hardware("H100"), to_the_end=False)
        on_time = outcome.summary().tokens_on_time
        print(
            f"{n_gpus} GPUs: {on_time:.3f} of {len(requests)} requests' tokens on time, "
            f"{outcome.n_swaps} swaps"
        )
        if on_time >= GOAL:
            print(f"{len(catalogue.facts)} models need {n_gpus} GPUs")
            return


if __name__ == "__main__":
    main()
