"""The output of every benchmark: a table for people, and one JSON document as the last line of stdout.

    {"benchmark": "swap", "commit": "0123456789ab", "date": "2026-11-21", "machine": {...},
     "quick": false, "metrics": {"activation_over_copy": 1.21, "activation_over_copy_p20": 1.18, ...},
     "targets": {"activation_over_copy": {"at_most": 1.3, "source": "...", "met": true}}}

A target whose metric was not measured in this run (`--quick` measures less) is left out rather than counted
as met. The document also goes into the history (`history.py`) if the environment names one.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import history
from tokenmux.core.compiled_form import is_compiled

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one metric, and its source."""

    source: str
    at_most: float | None = None
    at_least: float | None = None

    def is_met(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    def as_json(self, value: float) -> dict[str, object]:
        bounds = {"at_most": self.at_most, "at_least": self.at_least}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        return {**given, "source": self.source, "met": self.is_met(value)}


def spread(name: str, samples: Sequence[float]) -> dict[str, float]:
    """Median of the samples under `name`, and their 20th and 80th percentile."""
    middle, low, high = (float(at) for at in np.percentile(samples, (50, 20, 80)))
    return {name: middle, f"{name}_p20": low, f"{name}_p80": high}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table for people; numbers are aligned right."""
    grid = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        grid.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=None if os.isatty(1) else 140).print(grid)


def finish(
    name: str,
    metrics: Mapping[str, float],
    targets: Mapping[str, Target] | None = None,
    machine_facts: Mapping[str, object] | None = None,
) -> None:
    """Print the JSON document, and append it to the history if there is one. Call it last. `machine_facts`
    adds to the description of the machine (such as the device)."""
    measured = {key: target for key, target in (targets or {}).items() if key in metrics}
    document = {
        "benchmark": name,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "quick": "--quick" in sys.argv,
        "machine": {**machine(), **(machine_facts or {})},
        "metrics": {key: _rounded(value) for key, value in metrics.items()},
        "targets": {key: target.as_json(metrics[key]) for key, target in measured.items()},
    }
    file = history.named()
    if file is not None:
        history.append(document, file)
    print(json.dumps(document), flush=True)


def commit() -> str:
    """The checked-out commit, with the suffix `-dirty` if tracked files differ; `unknown` outside a
    checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        # The history grows as benchmarks end, which does not change what they measure.
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", f":!benchmarks/{history.FILE.name}"
        )
        return head + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, object]:
    """The machine behind the numbers: enough to judge them, but nothing that identifies a host."""
    return {
        "system": platform.system(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "form": "compiled" if is_compiled() else "pure",
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")
