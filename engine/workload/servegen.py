"""Alibaba's ServeGen production arrivals, read so that each client is a model: a market of bursts and
silence.

That reading is ours, not Alibaba's. The file gives, for every client and window of 600 s with traffic, a rate
and the distribution of its inter-arrival times. Times are drawn from it and then stretched to fill the
window, as ServeGen does (alibaba/ServeGen, Apache-2.0).
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator

from tokenmux.core.errors import NotFound
from tokenmux.workload.generate import Renewal, poisson
from tokenmux.workload.lengths import Lengths, LengthTable
from tokenmux.workload.trace import Trace, TraceRequest, open_text

WINDOW_S = 600.0


@dataclass(frozen=True, slots=True)
class Window:
    """One client's traffic in `[start_s, start_s + 600)`."""

    client: str
    start_s: float
    rate_rps: float
    process: Renewal | None
    """None if the file has no usable distribution: Poisson is used instead."""


def read_windows(path: Path, model: str, start_s: float, end_s: float) -> list[Window]:
    """Windows of one of the file's models (`m-large`, `m-mid`, ...) that begin in `[start_s, end_s)`, in file
    order."""
    windows = []
    with open_text(path) as lines:
        for row in csv.DictReader(lines):
            at_s = float(row["window_start_s"])
            if row["model"] == model and start_s <= at_s < end_s and float(row["rate_rps"] or 0) > 0:
                windows.append(Window(row["client"], at_s, float(row["rate_rps"]), _process(row)))
    if not windows:
        raise NotFound(f"{path} has no traffic of {model} in [{start_s:g}, {end_s:g})")
    return windows


def read_lengths(path: Path, model: str) -> dict[str, Lengths]:
    """Length tables by client. The key "" holds the pooled table, for clients that have none of their own."""
    tables: dict[str, dict[str, LengthTable]] = {}
    weights: dict[str, int] = {}
    with open_text(path) as lines:
        for row in csv.DictReader(lines):
            if row["model"] != model:
                continue
            points = [
                (float(name[1:]) / 100, float(value))
                for name, value in row.items()
                if name[0] == "p" and name[1:2].isdigit() and value
            ]
            shares, tokens = zip(*points, strict=True)
            tables.setdefault(row["client"], {})[row["field"]] = LengthTable(shares, tokens)
            weights[row["client"]] = int(float(row["requests"]))
    lengths = {
        client: Lengths(fields["input_tokens"], fields["output_tokens"])
        for client, fields in tables.items()
        if len(fields) == 2
    }
    lengths[""] = _pooled(lengths, weights)
    return lengths


def servegen_market(
    rng: Generator, windows: Iterable[Window], lengths: Mapping[str, Lengths], origin_s: float = 0.0
) -> Trace:
    """The trace of a market in which each client is a model named `model-CLIENT`; `origin_s` becomes time
    0."""
    trace: Trace = []
    for window in windows:
        times = window.start_s - origin_s + _fill(rng, window)
        own = lengths.get(window.client, lengths[""])
        n_in = own.input.draw(rng, len(times))
        n_out = own.output.draw(rng, len(times))
        name = f"model-{window.client}"
        trace += [TraceRequest(float(t), name, a, b) for t, a, b in zip(times, n_in, n_out, strict=True)]
    return sorted(trace, key=lambda line: line.arrival_s)


def _process(row: Mapping[str, str]) -> Renewal | None:
    family = row["iat_dist"].strip().lower()
    if family not in ("gamma", "weibull") or not row["iat_shape"]:
        return None
    shape = float(row["iat_shape"])
    return Renewal(family, shape) if shape > 0 else None


def _fill(rng: Generator, window: Window) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Arrival times within the window: as many as the rate says, with gaps of the fitted shape stretched
    to fill it."""
    expected = window.rate_rps * WINDOW_S
    n = int(expected) + int(rng.random() < expected - int(expected))
    if window.process is None or n == 0:
        return poisson(rng, window.rate_rps, WINDOW_S) if n else np.empty(0)
    gaps = window.process.gaps(rng, 1.0, n + 1)
    return np.cumsum(gaps)[:-1] * (WINDOW_S / float(np.sum(gaps)))


def _pooled(lengths: Mapping[str, Lengths], weights: Mapping[str, int]) -> Lengths:
    """The mixture of all clients' tables, by their numbers of requests."""
    shares = tuple(np.linspace(0.005, 0.995, 100).tolist())

    def mixed(tables: list[tuple[LengthTable, int]]) -> LengthTable:
        tokens = np.concatenate([[table.at(share) for share in shares] for table, _ in tables])
        weight = np.concatenate([np.full(len(shares), float(w)) for _, w in tables])
        order = np.argsort(tokens)
        reached = np.cumsum(weight[order]) / weight.sum()
        return LengthTable(shares, tuple(np.interp(shares, reached, tokens[order]).tolist()))

    known = [(own, weights[client]) for client, own in lengths.items()]
    return Lengths(mixed([(own.input, w) for own, w in known]), mixed([(own.output, w) for own, w in known]))
