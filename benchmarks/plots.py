"""Plots of the scheduling benchmarks, written beside their results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.report import ROOT

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "tokenmux"
mpl.rcParams["svg.fonttype"] = "none"

FOLDER = ROOT / "docs" / "results"


def lines(
    name: str,
    title: str,
    x_label: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    goal: float | None = None,
) -> Path:
    """Plot one line per curve, shares on the y axis. Returns the file."""
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
    return _save(figure, name)


def bars(name: str, title: str, y_label: str, groups: Mapping[str, Mapping[str, float]]) -> Path:
    """Plot one bar per label in every group, with its value on top. Returns the file."""
    from matplotlib import pyplot as plt

    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    figure, axes = plt.subplots(figsize=(max(7.0, 0.45 * len(groups) * len(labels)), 4), layout="constrained")
    width = 0.8 / len(labels)
    for index, label in enumerate(labels):
        places = [place + index * width for place, group in enumerate(groups.values()) if label in group]
        drawn = axes.bar(places, [g[label] for g in groups.values() if label in g], width, label=label)
        axes.bar_label(drawn, fmt=_short, fontsize=7, rotation=90 if len(labels) > 1 else 0, padding=2)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))], list(groups), fontsize=8)
    axes.set_title(title)
    axes.set_ylabel(y_label)
    axes.margins(y=0.15)
    if len(labels) > 1:
        figure.legend(loc="outside lower center", ncols=len(labels), fontsize=8)
    return _save(figure, name)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def series(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> Path:
    """Plot quantities over time, one stepped line per curve. Returns the file."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for label, points in curves.items():
        axes.step([x for x, _ in points], [y for _, y in points], where="post", linewidth=1.2, label=label)
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=len(curves), fontsize=8)
    return _save(figure, name)


def _save(figure: Figure, name: str) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    figure.clear()
    return path
