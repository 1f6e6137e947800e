"""GPU day: everything that only a machine with a GPU can tell, in one command and under ten minutes.

    make gpu        or        python -m benchmarks.gpu [--out gpu.json] [--seconds 570] [--only SECTION ...]
    python -m benchmarks.gpu --interpret        the program itself, in Triton's interpreter on the CPU: no figure, tiny shapes

Sections, in this order: the copy bandwidths that all else is measured against; the tests marked `gpu`; every kernel against its
reference in bfloat16 and float16; whole models, alone and in company; every kernel against its byte floor and against torch's
attention on contiguous KV; swapping through the engine against one pinned copy; decoding through our skeleton and runner.

Each section runs in a process of its own, and each of its items is written down as soon as it is done: what crashes the device or
hangs costs that item, is recorded as such, and the rest goes on. Results go to a JSON file, a table, and the last line of stdout.
Exit status: 0 all items done, 1 some failed or found no time, 2 no CUDA device.

Nothing has to be installed on a machine that has torch, Triton and transformers: the package is found through `.typing`.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.report import ROOT, commit, finish, machine, table

if TYPE_CHECKING:
    from benchmarks.gpu_place import Item, Place

SECTIONS: dict[str, tuple[str, float]] = {
    "copies": ("benchmarks.gpu_kernels:copies", 40),
    "tests": ("benchmarks.gpu_models:tests", 150),
    "correctness": ("benchmarks.gpu_kernels:correctness", 90),
    "models": ("benchmarks.gpu_models:models", 90),
    "kernels": ("benchmarks.gpu_kernels:timings", 120),
    "swap": ("benchmarks.gpu_models:swap", 90),
    "decode": ("benchmarks.gpu_models:decode", 120),
}
"""Where a section's items come from, and the most seconds that it may take."""

CRASHES_FORGIVEN = 3
"""A process that dies is started again behind the item that killed it; after so many the section ends."""

GRACE_S = 20.0
"""An item in flight may overrun its section's time by this much before the process is ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: `status` is done, failed, crashed or skipped; `values` are its figures or the reason."""

    section: str
    item: str
    status: str
    seconds: float
    values: Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interpret", action="store_true", help="check this program on the CPU; no timings")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="results (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=570.0, help="for everything together (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # where items come from, log, seconds
    options = parser.parse_args(arguments)
    if options.child:
        from benchmarks.gpu_place import Place

        source, log, seconds = options.child
        run_items(source, Path(log), float(seconds), Place.here(interpreted=options.interpret))
        return 0
    if not options.interpret and not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} sees none here (look at nvidia-smi and CUDA_VISIBLE_DEVICES).\n"
            "To check this program without one: python -m benchmarks.gpu --interpret",
            file=sys.stderr,
        )
        return 2
    began = time.monotonic()
    outcomes: list[Outcome] = []
    for section in options.only:
        left = options.seconds - (time.monotonic() - began)
        print(f"{section} ...", file=sys.stderr, flush=True)
        outcomes += carry_out(section, min(SECTIONS[section][1], left), options.interpret)
        write(options.out, outcomes, options.interpret, time.monotonic() - began)
    report(outcomes, options.out, options.interpret)
    return 0 if all(outcome.status == "done" for outcome in outcomes) else 1


def carry_out(section: str, seconds: float, interpreted: bool) -> list[Outcome]:
    """Run a section in processes of its own until it ends, its time is up, or too many of them died."""
    ends = time.monotonic() + seconds
    if seconds <= 0:
        return [Outcome(section, "all", "skipped", 0.0, {"reason": "no time left"})]
    with tempfile.TemporaryDirectory(prefix="tokenmux-gpu-") as folder:
        log = Path(folder) / "log"
        log.touch()
        for _ in range(1 + CRASHES_FORGIVEN):
            left = max(ends - time.monotonic(), 0.0)
            reason = start(section, log, left, interpreted)
            if not reason:
                break
            begun, outcomes = read(section, log)
            if begun is None:
                outcomes.append(Outcome(section, "all", "crashed", 0.0, {"reason": reason}))
                return outcomes
            add(log, {"item": begun, "status": "crashed", "seconds": 0.0, "values": {"reason": reason}})
        return read(section, log)[1]


def start(section: str, log: Path, seconds: float, interpreted: bool) -> str:
    """One process for the rest of a section; why it ended, or nothing if all is well."""
    search = [str(ROOT / ".typing"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    if interpreted:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--child",
        SECTIONS[section][0],
        str(log),
        str(seconds),
    ]
    try:
        done = subprocess.run(
            command + ["--interpret"] * interpreted,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=seconds + GRACE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it did not end in time"
    if done.returncode == 0:
        return ""
    last = [line for line in done.stderr.splitlines() if line.strip()][-3:]
    return f"the process ended with status {done.returncode}: {' | '.join(last)}"


def run_items(source: str, log: Path, seconds: float, place: "Place") -> None:
    """In the process of a section: the items that `source` makes, one after the other, but for those that the log knows already."""
    ends = time.monotonic() + seconds
    module, _, name = source.partition(":")
    seen = {entry["item"] for entry in entries(log)}
    items: Sequence[Item] = getattr(importlib.import_module(module), name)(place)
    for item in items:
        if item.name in seen:
            continue
        if time.monotonic() > ends:
            add(
                log,
                {
                    "item": item.name,
                    "status": "skipped",
                    "seconds": 0.0,
                    "values": {"reason": "no time left"},
                },
            )
            continue
        add(log, {"item": item.name})
        began = time.monotonic()
        try:
            status, values = "done", dict(item.run())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's result
            status = "failed"
            where = traceback.extract_tb(error.__traceback__)[-1]
            values = {
                "reason": f"{type(error).__name__}: {error}"[:600],
                "where": f"{Path(where.filename).name}:{where.lineno}",
            }
        add(log, {"item": item.name, "status": status, "seconds": time.monotonic() - began, "values": values})


def add(log: Path, entry: Mapping[str, object]) -> None:
    with log.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def entries(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def read(section: str, log: Path) -> tuple[str | None, list[Outcome]]:
    """The item that was begun and not ended, if any, and what became of the others."""
    begun: str | None = None
    outcomes = []
    for entry in entries(log):
        if "status" in entry:
            begun = None
            outcomes.append(
                Outcome(section, entry["item"], entry["status"], entry["seconds"], entry["values"])
            )
        else:
            begun = entry["item"]
    return begun, outcomes


def write(out: Path, outcomes: Sequence[Outcome], interpreted: bool, seconds: float) -> None:
    """The whole document so far: after every section, so that nothing is lost if the rest is."""
    sections: dict[str, dict[str, object]] = {}
    for outcome in outcomes:
        entry = {"status": outcome.status, "seconds": round(outcome.seconds, 3), **outcome.values}
        sections.setdefault(outcome.section, {})[outcome.item] = entry
    document = {
        "benchmark": "gpu",
        "commit": commit(),
        "interpreted": interpreted,
        "seconds": round(seconds, 1),
        "machine": {**machine(), **versions()},
        "sections": sections,
    }
    out.write_text(json.dumps(document, indent=1) + "\n")


def versions() -> dict[str, object]:
    def of(name: str) -> str:
        try:
            return str(importlib.import_module(name).__version__)
        except ImportError:
            return "not installed"

    found: dict[str, object] = {name: of(name) for name in ("torch", "triton", "transformers")}
    found["cuda"] = torch.version.cuda or "none"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    return found


def report(outcomes: Sequence[Outcome], out: Path, interpreted: bool) -> None:
    """The table for people, and the JSON line: each figure as section.item.name."""
    metrics: dict[str, float] = {}
    rows = []
    for outcome in outcomes:
        figures = {name: value for name, value in outcome.values.items() if isinstance(value, int | float)}
        if not interpreted:
            metrics |= {f"{outcome.section}.{outcome.item}.{name}": value for name, value in figures.items()}
        told = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in outcome.values.items()
        )
        rows.append([outcome.section, outcome.item, outcome.status, told])
    title = (
        "in Triton's interpreter: shows that the program runs, no figure means anything"
        if interpreted
        else "on the GPU"
    )
    table(title, ["section", "item", "status", "figures"], rows)
    for status in ("failed", "crashed", "skipped"):
        missed = sum(outcome.status == status for outcome in outcomes)
        metrics[f"items_{status}"] = missed
        if missed:
            print(f"{missed} items {status}")
    print(f"all of it: {out}")
    finish("gpu", metrics, None, {**versions(), "interpreted": interpreted})


if __name__ == "__main__":
    sys.exit(main())
