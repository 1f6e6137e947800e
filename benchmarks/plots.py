"""Plots of the scheduling benchmarks, written beside their results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

from benchmarks.report import ROOT

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tokenmux"

FOLDER = ROOT / "docs" / "results"


def lines(
    name: str,
    title: str,
    x_label: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    goal: float | None = None,
) -> Path:
    """One line per curve, shares on the y axis; returns the file."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for label, points in curves.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=label)
    if goal is not None:
        axes.axhline(goal, color="grey", linewidth=0.8, linestyle="--")
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel("share of tokens on time")
    axes.set_ylim(0, 1.02)
    axes.legend()
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
