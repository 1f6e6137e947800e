"""The pool against what its parts could do at best.

    python -m benchmarks.pool [--quick] [--cache FOLDER]

One device through the whole server against the runner's bare loop: see `over_runner`.
"""

import argparse
import asyncio
from pathlib import Path

from benchmarks import over_runner, report

TARGETS = {
    "served_over_runner": report.Target(
        source="one device through the server loses at most 7% of the runner's bare loop", at_least=0.93
    ),
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
    metrics = over_runner.metrics_of(
        asyncio.run(over_runner.measure(options.cache, 10 if options.quick else 30))
    )
    report.finish("pool", metrics, TARGETS)


if __name__ == "__main__":
    main()
