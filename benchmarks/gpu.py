"""GPU day: everything that only a machine with a GPU can tell, in one command and within eight minutes.

    make gpu OUT=FOLDER
    python -m benchmarks.gpu --out FOLDER [--seconds 480] [--only SECTION ...] [--cache FOLDER]

    # Try the program itself, in Triton's interpreter on the CPU: tiny shapes, no figures.
    python -m benchmarks.gpu --interpret

    # Compile its kernels on a machine without a GPU, to bring the cache along.
    python -m benchmarks.gpu --prepare sm_90 --cache FOLDER

Sections, in this order: the copy bandwidths with which everything else is compared; a node process that
serves two models in an arena for one; every kernel against its reference in bfloat16 and float16; whole
models, alone and in company; the measurements for which the design waits (captured steps, page-locking,
alignment, paging beside steps, a profile); every kernel against its byte floor and against torch's attention;
decoding through our skeleton and runner; swapping against one pinned copy; the tests marked `gpu`.

Each section runs in a separate process, and each item is written to FOLDER/gpu.json as soon as it is done: an
item that crashes the device or hangs is recorded as such, and the others continue. FOLDER also gets
table.txt, the output of the processes (SECTION.log), and the files that items leave. No section begins
without time for its first items, and no item exceeds its section's time by more than GRACE_S. The last line
of stdout is the usual JSON document. Exit status: 0 all items done, 1 some failed or found no time, 2 no CUDA
device.

Nothing has to be installed on a machine that has torch, Triton, transformers and msgspec: the package is
found through `.typing`.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.report import ROOT, commit, finish, machine, table

if TYPE_CHECKING:
    from benchmarks.gpu_place import Item

SECTIONS: dict[str, tuple[str, float]] = {
    "prepare": ("benchmarks.gpu_preparation:preparation", 60),
    "copies": ("benchmarks.gpu_copies:copies", 40),
    "node": ("benchmarks.gpu_node:node", 90),
    "correctness": ("benchmarks.gpu_correctness:correctness", 70),
    "models": ("benchmarks.gpu_models:models", 80),
    "measures": ("benchmarks.gpu_measures:measures", 110),
    "kernels": ("benchmarks.gpu_timings:timings", 80),
    "decode": ("benchmarks.gpu_models:decode", 90),
    "swap": ("benchmarks.gpu_models:swap", 60),
    "tests": ("benchmarks.gpu_models:tests", 120),
}
"""The source of a section's items, and the longest time that it may take, in seconds."""

CRASHES_FORGIVEN = 3
"""A process that dies is started again after the item that killed it; after this many deaths the section
ends."""

GRACE_S = 20.0
"""An item in flight may overrun its section's time by this much before its process is killed."""

LEAST_S = 15.0
"""A process needs most of this to import torch and transformers: with less time left, its section does not
begin."""

BROKEN_DEVICE = 13
"""Exit status of a process whose device no longer works: the rest of its items need a new process."""

END_S = 5.0
"""A process whose reports have ended may take this long to end itself."""

SLOW_END = 1000
"""Used instead of an exit status if it took longer."""

Seconds = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one item: `status` is done, failed, crashed or skipped; `values` are its figures or
    the reason."""

    section: str
    item: str
    status: str
    seconds: float
    values: Mapping[str, Any]


@dataclass(slots=True)
class Run:
    """Where results go, and how processes are started. `clock` is passed in, so that a test can say when
    time is up."""

    out: Path
    interpreted: bool
    cache: Path | None = None
    clock: Seconds = time.monotonic
    outcomes: list[Outcome] = field(default_factory=list)
    in_flight: str | None = None
    """The item that runs now, as section.item."""
    began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.began_s = self.clock()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.began_s

    def begin(self, section: str, item: str) -> None:
        """Record the running item: if everything ends now, the document names it."""
        self.in_flight = f"{section}.{item}"
        self.write()

    def note(self, outcome: Outcome) -> None:
        """Add an outcome and write the whole document again, so that it is kept whatever happens next."""
        self.in_flight = None
        self.outcomes.append(outcome)
        self.write()

    def write(self) -> None:
        sections: dict[str, dict[str, object]] = {}
        for outcome in self.outcomes:
            entry = {"status": outcome.status, "seconds": round(outcome.seconds, 3), **outcome.values}
            sections.setdefault(outcome.section, {})[outcome.item] = entry
        document = {
            "benchmark": "gpu",
            "commit": commit(),
            "interpreted": self.interpreted,
            "seconds": round(self.seconds, 1),
            "machine": {**machine(), **versions()},
            "in_flight": self.in_flight,
            "sections": sections,
        }
        half = self.out / "gpu.json.new"
        half.write_text(json.dumps(document, indent=1, default=str) + "\n")
        half.replace(self.out / "gpu.json")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interpret", action="store_true", help="check this program on the CPU; no timings")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-results"), help="folder of results (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=480.0, help="for everything together (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--cache", type=Path, help="folder of compiled kernels, to use and to fill")
    parser.add_argument("--prepare", metavar="sm_NN", help="only compile the kernels, without a GPU")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # where items come from, out, seconds
    options = parser.parse_args(arguments)
    if options.cache is not None:
        os.environ["TRITON_CACHE_DIR"] = str(options.cache.absolute())
    if options.child:
        return child(*options.child, interpreted=options.interpret)
    if options.prepare:
        from benchmarks.gpu_preparation import prepare

        print(prepare(int(options.prepare.removeprefix("sm_"))))
        return 0
    if not options.interpret and not torch.cuda.is_available():
        print(
            f"no CUDA device: torch {torch.__version__} sees none here (look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES).\n"
            "To check this program without one: python -m benchmarks.gpu --interpret",
            file=sys.stderr,
        )
        return 2
    run = Run(options.out, options.interpret, options.cache)
    run.write()
    for section in options.only:
        left = options.seconds - run.seconds
        print(f"{section} ...", file=sys.stderr, flush=True)
        carry_out(run, section, min(SECTIONS[section][1], left))
    report(run)
    return 0 if all(outcome.status == "done" for outcome in run.outcomes) else 1


# ── in the process that was called ──────────────────────────────────────────────────────────────────────────


def carry_out(run: Run, section: str, seconds: float) -> None:
    """Run a section in separate processes until it ends, its time is up, or too many of them died."""
    ends_s = run.clock() + seconds
    seen: set[str] = set()
    for attempt in range(1 + CRASHES_FORGIVEN):
        left = ends_s - run.clock()
        if left < LEAST_S:
            run.note(
                Outcome(section, "all" if not attempt else "rest", "skipped", 0.0, {"reason": "no time left"})
            )
            return
        before = len(seen)
        reason = one_process(run, section, left, seen)
        if not reason:
            return
        if len(seen) == before:
            run.note(Outcome(section, "all", "crashed", 0.0, {"reason": reason}))
            return


def one_process(run: Run, section: str, seconds: float, seen: set[str]) -> str:
    """Run one process for the items of a section that are not in `seen`. Returns why it has to be started
    again, or an empty text."""
    ends_s = run.clock() + seconds + GRACE_S
    with (run.out / f"{section}.log").open("ab") as log, started(run, section, seconds, seen, log) as process:
        lines: SimpleQueue[str | None] = SimpleQueue()
        Thread(target=read_lines, args=(process, lines), daemon=True).start()
        begun: str | None = None
        while True:
            try:
                line = lines.get(timeout=max(0.0, ends_s - run.clock()))
            except Empty:
                reason = "it did not end in time"
                break
            if line is None:
                reason = ""
                break
            entry = json.loads(line)
            begun = None if "status" in entry else entry["item"]
            if begun is not None:
                run.begin(section, begun)
            else:
                seen.add(entry["item"])
                run.note(Outcome(section, entry["item"], entry["status"], entry["seconds"], entry["values"]))
        status = kill(process, END_S if not reason else 0.0)
    if not reason and status in (0, SLOW_END):
        return ""
    if not reason:
        said = (run.out / f"{section}.log").read_text(errors="replace").splitlines()
        last = [line for line in said if line.strip()][-3:]
        reason = f"the process ended with status {status}: {' | '.join(last)}"
    if begun is not None:
        seen.add(begun)
        run.note(Outcome(section, begun, "crashed", 0.0, {"reason": reason}))
    return reason


def started(run: Run, section: str, seconds: float, seen: set[str], log: Any) -> "subprocess.Popen[str]":
    search = [str(ROOT / ".typing"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    environment["TOKENMUX_GPU_SEEN"] = json.dumps(sorted(seen))
    if run.interpreted:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    source = SECTIONS[section][0]
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--child",
        source,
        str(run.out.absolute()),
        str(seconds),
    ]
    if run.cache is not None:
        command += ["--cache", str(run.cache.absolute())]
    return subprocess.Popen(
        command + ["--interpret"] * run.interpreted,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )


def read_lines(process: "subprocess.Popen[str]", lines: "SimpleQueue[str | None]") -> None:
    """Put the child's reports into `lines`, and None at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def kill(process: "subprocess.Popen[str]", after_s: float) -> int:
    """End the process and its children if they have not ended within `after_s`. Returns its exit status, or
    SLOW_END."""
    status = SLOW_END
    try:
        status = process.wait(after_s)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    return status


# ── in the process of a section ─────────────────────────────────────────────────────────────────────────────


def child(source: str, out: str, seconds: str, *, interpreted: bool) -> int:
    from benchmarks.gpu_place import Place

    reports = os.fdopen(os.dup(1), "w", buffering=1)
    # Output of libraries goes to the log, so that it does not mix with the reports.
    os.dup2(2, 1)
    with redirect_stdout(sys.stderr):
        place = Place.here(interpreted=interpreted, out=Path(out))
        seen = set(json.loads(os.environ.get("TOKENMUX_GPU_SEEN", "[]")))
        module, _, name = source.partition(":")
        items = getattr(importlib.import_module(module), name)(place)
        for entry in carried_out(items, seen, float(seconds), time.monotonic):
            print(json.dumps(entry, default=str), file=reports, flush=True)
            if entry.get("status") == "failed" and not place.works():
                os._exit(BROKEN_DEVICE)
    return 0


def carried_out(
    items: "Sequence[Item]", seen: set[str], seconds: float, clock: Seconds
) -> Iterator[dict[str, Any]]:
    """Carry out the items that were not seen, reporting the beginning and the end of each. No item begins
    too late."""
    ends_s = clock() + seconds
    for item in items:
        if item.name in seen:
            continue
        if clock() + item.seconds > ends_s:
            yield report_of(item, "skipped", 0.0, {"reason": "no time left"})
            continue
        yield {"item": item.name}
        began_s = clock()
        try:
            status, values = "done", dict(item.run())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this item's result
            trace = "".join(traceback.format_exception(error)[-6:])
            status, values = (
                "failed",
                {"reason": f"{type(error).__name__}: {error}"[:600], "trace": trace[-3000:]},
            )
        yield report_of(item, status, clock() - began_s, values)


def report_of(item: "Item", status: str, seconds: float, values: Mapping[str, object]) -> dict[str, Any]:
    return {"item": item.name, "status": status, "seconds": seconds, "values": values}


# ── what is told at the end ─────────────────────────────────────────────────────────────────────────────────


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


def report(run: Run) -> None:
    """Print the table for people, also into a file, and the JSON line: each figure as section.item.name."""
    metrics: dict[str, float] = {}
    rows = []
    for outcome in run.outcomes:
        figures = {name: value for name, value in outcome.values.items() if isinstance(value, int | float)}
        if not run.interpreted:
            metrics |= {f"{outcome.section}.{outcome.item}.{name}": value for name, value in figures.items()}
        told = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in outcome.values.items()
            if name != "trace"
        )
        rows.append([outcome.section, outcome.item, outcome.status, told])
    title = (
        "in Triton's interpreter: shows that the program runs, no figure means anything"
        if run.interpreted
        else "on the GPU"
    )
    table(title, ["section", "item", "status", "figures"], rows)
    (run.out / "table.txt").write_text("\n".join(" | ".join(map(str, row)) for row in rows) + "\n")
    for status in ("failed", "crashed", "skipped"):
        missed = sum(outcome.status == status for outcome in run.outcomes)
        metrics[f"items_{status}"] = missed
        if missed:
            print(f"{missed} items {status}")
    print(f"all of it: {run.out}")
    finish("gpu", metrics, None, {**versions(), "interpreted": run.interpreted})


if __name__ == "__main__":
    sys.exit(main())
