"""Compares the newest run of each benchmark with earlier ones on the same kind of machine.

    python -m benchmarks.compare [BENCHMARK ...] [--last 5] [--history FILE]

A metric is *outside* if it lies beyond everything that the last runs measured, including their percentiles:
noise seldom does that. Metrics with a target have a known good direction. Prints a table for people, and one
JSON document as the last line. The exit status is 1 if a target that was met in the previous run is missed
now.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import history
from benchmarks.history import Entry
from benchmarks.report import table


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of the newest run and of earlier runs."""

    benchmark: str
    metric: str
    commit: str
    new: float
    before: float
    """Median of the earlier runs."""
    low: float
    high: float
    """The smallest and the largest value of the earlier runs, including percentiles."""
    n_before: int
    lost: bool
    """True if it has a target that was met in the previous run and is missed now."""

    @property
    def ratio(self) -> float | None:
        """New over before; None if that is 0."""
        return self.new / self.before if self.before else None

    @property
    def outside(self) -> bool:
        return not self.low <= self.new <= self.high


def compare(entries: Iterable[Entry], last: int, benchmarks: Sequence[str] = ()) -> list[Change]:
    """Compare the newest entry of every kind with up to `last` earlier ones, for these `benchmarks` or for
    all."""
    by_kind: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        if not benchmarks or entry.benchmark in benchmarks:
            by_kind.setdefault(entry.kind, []).append(entry)
    return [change for runs in by_kind.values() for change in _changes(runs[-1], runs[:-1][-last:])]


def _changes(new: Entry, before: Sequence[Entry]) -> Iterable[Change]:
    for name in new.names:
        earlier = [entry for entry in before if name in entry.metrics]
        if not earlier:
            continue
        seen = [
            entry.metrics[key]
            for entry in earlier
            for key in (name, f"{name}_p20", f"{name}_p80")
            if key in entry.metrics
        ]
        met = [bool(entry.targets[name]["met"]) for entry in (earlier[-1], new) if name in entry.targets]
        yield Change(
            new.benchmark,
            name,
            new.commit,
            new.metrics[name],
            median(entry.metrics[name] for entry in earlier),
            min(seen),
            max(seen),
            len(earlier),
            met == [True, False],
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmarks", nargs="*", help="only these")
    parser.add_argument("--last", type=int, default=5, help="number of earlier runs to compare with")
    parser.add_argument("--history", type=Path, default=history.named() or history.FILE)
    asked = parser.parse_args()
    changes = compare(history.read(asked.history), asked.last, asked.benchmarks)
    table(
        "newest run against earlier ones on the same kind of machine",
        ("benchmark", "metric", "new", "before", "ratio", "least", "most", "runs", ""),
        [
            (c.benchmark, c.metric, c.new, c.before, c.ratio or "", c.low, c.high, c.n_before, _remark(c))
            for c in changes
        ],
    )
    lost = [f"{change.benchmark} {change.metric}" for change in changes if change.lost]
    outside = {f"{change.benchmark} {change.metric}": change.ratio for change in changes if change.outside}
    print(json.dumps({"compared": len(changes), "outside": outside, "targets_lost": lost}), flush=True)
    return 1 if lost else 0


def _remark(change: Change) -> str:
    return "target lost" if change.lost else "outside" if change.outside else ""


if __name__ == "__main__":
    sys.exit(main())
