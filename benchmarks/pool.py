"""The pool against what its parts could do at best.

    python -m benchmarks.pool [--quick] [--cache FOLDER]

One device through the whole server against the runner's bare loop: see `over_runner`. How long devices that
compute nothing wait for a real node between two steps: one with steps of 5 ms, and eight with the steps of
an H100 and 200 requests (`null_pool`). Two virtual devices against one, as it is here (`two_devices`).
"""

import argparse
import asyncio
from pathlib import Path

from benchmarks import null_pool, over_runner, report, two_devices

ONE = null_pool.Load(null_pool.STEPS_OF_5_MS, n_devices=1, n_models=3, n_requests=24)
EIGHT = null_pool.Load(null_pool.H100, n_devices=8, n_models=16, n_requests=200)
TARGETS = {
    "served_over_runner": report.Target(
        source="one device through the server loses at most 7% of the runner's bare loop", at_least=0.93
    ),
    "device_idle_share": report.Target(source="between the steps of a busy device of 5 ms", at_most=0.03),
    "node_wait_share": report.Target(source="eight devices wait for their node", at_most=0.03),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a look: a third of the rounds")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path.home() / ".cache" / "tokenmux",
        help="where the model is kept (default: %(default)s)",
    )
    options = parser.parse_args()
    quick = options.quick
    metrics = over_runner.metrics_of(asyncio.run(over_runner.measure(options.cache, 10 if quick else 30)))
    rows: list[list[object]] = []
    for name, load in (("device_idle_share", ONE), ("node_wait_share", EIGHT)):
        slices = null_pool.measure(load, 4 if quick else 15)
        metrics |= report.spread(name, [seen.idle_share for seen in slices])
        node = report.spread(f"{name}_node_of_a_core", [seen.node_share for seen in slices])
        metrics |= node
        rate = report.spread("rate", [seen.tokens_per_s for seen in slices])["rate"]
        rows.append([load.device.name, load.n_devices, load.n_requests, metrics[name], *node.values(), rate])
    report.table(
        "Devices that compute nothing wait for their node",
        ["device", "devices", "requests", "share of time", "node, of a core", "p20", "p80", "tokens/s"],
        rows,
    )
    metrics |= two_devices.metrics_of(asyncio.run(two_devices.measure(options.cache, 1 if quick else 3)))
    report.finish("pool", metrics, TARGETS)


if __name__ == "__main__":
    main()
