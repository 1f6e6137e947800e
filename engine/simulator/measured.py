"""A cost model from what steps and copies took on a real device, to simulate exactly that device.

Steps of one model shape are fitted together, linear in the four numbers of their work, with no negative
coefficient. Beside a copy, all steps take longer by one common factor, which is fitted too.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tokenmux.core.cost import StepWork
from tokenmux.core.effects import OperationEnded, StepEnded
from tokenmux.core.errors import InternalError
from tokenmux.core.facts import KvShape, ModelFacts
from tokenmux.core.plan import Channel
from tokenmux.core.started import StartedCompaction

Shape = tuple[KvShape, int]
"""Models of one KV shape and parameter count take the same time for a step."""

_ROUNDS = 50
_SETTLED = 1e-4
"""The fit and the interference factor depend on each other: they are computed alternately until the factor
changes by less than this."""

_LONGEST_TURNAROUND_S = 0.05
"""A longer pause between two steps means that there was nothing to do. Of the other pauses the median counts,
since some wait for a copy."""


@dataclass(frozen=True, slots=True)
class MeasuredCost:
    """A cost model that does not learn. Raises KeyError for model shapes that were never measured."""

    steps: Mapping[Shape, tuple[float, ...]]
    """Seconds: of any step, per prefilled token, per pair of query and key, per decode row, per token of
    context."""
    copies: Mapping[Channel, tuple[float, float]]
    """Seconds of any copy, and seconds per byte."""
    interference: float
    """Duration of a step beside a copy, relative to the same step alone."""
    turnaround_s: float
    """Mean time from the end of an iteration to the next one, beyond the steps themselves."""

    def step_s(self, model: ModelFacts, work: StepWork) -> float:
        alone_s = float(np.dot(self.steps[shape_of(model)], _features(work)))
        return alone_s * (self.interference if work.beside_copy else 1.0) + self.turnaround_s

    def copy_s(self, channel: Channel, n_bytes: int) -> float:
        fixed_s, byte_s = self.copies[channel]
        return fixed_s + byte_s * n_bytes

    def move_s(self, n_bytes: int) -> float:
        return self.copy_s(Channel.COPY_IN, n_bytes)

    def observe_step(self, model: ModelFacts, work: StepWork, seconds: float) -> None:
        """Do nothing."""

    def observe_copy(self, channel: Channel, n_bytes: int, seconds: float) -> None:
        """Do nothing."""


def fit_cost(completed: Sequence[OperationEnded]) -> MeasuredCost:
    """Fit a cost model to operations. Raises InternalError if there is no step or no copy to the device
    among them."""
    steps = [iteration_of(ended) for ended in completed if isinstance(ended, StepEnded)]
    if not steps:
        raise InternalError("a cost model cannot be fitted to no step")
    before, interference = 0.0, 1.0
    for _ in range(_ROUNDS):
        fits = _fit_steps(steps, interference)
        before, interference = interference, _interference(steps, fits)
        if abs(interference - before) < _SETTLED:
            break
    return MeasuredCost(fits, _fit_copies(completed), interference, _turnaround_s(completed))


def shape_of(model: ModelFacts) -> Shape:
    return model.kv, model.n_parameters


def iteration_of(ended: StepEnded) -> tuple[ModelFacts, StepWork, float]:
    """The model, work and seconds of the mean iteration of a step."""
    started = ended.started
    n = len(ended.done.ends_s)
    grown = started.work.decode_rows * (n - 1) // 2
    work = started.work._replace(context_tokens=started.work.context_tokens + grown)
    return started.model, work, (ended.done.at_s - started.at_s) / n


def _features(work: StepWork) -> tuple[float, ...]:
    return 1.0, work.prefill_tokens, work.prefill_pairs, work.decode_rows, work.context_tokens


def _fit_steps(
    steps: Iterable[tuple[ModelFacts, StepWork, float]], interference: float
) -> dict[Shape, tuple[float, ...]]:
    by_shape: dict[Shape, list[tuple[tuple[float, ...], float]]] = defaultdict(list)
    for model, work, seconds in steps:
        alone_s = seconds / (interference if work.beside_copy else 1.0)
        by_shape[shape_of(model)].append((_features(work), alone_s))
    return {shape: _least_squares(rows) for shape, rows in by_shape.items()}


def _interference(
    steps: Iterable[tuple[ModelFacts, StepWork, float]], fits: Mapping[Shape, tuple[float, ...]]
) -> float:
    """Time of all steps beside a copy over what they would have taken alone. 1 if there was none, or if
    they were faster."""
    beside = [(m, w, s) for m, w, s in steps if w.beside_copy]
    alone_s = sum(float(np.dot(fits[shape_of(model)], _features(work))) for model, work, _ in beside)
    return max(1.0, sum(seconds for _, _, seconds in beside) / alone_s) if alone_s else 1.0


def _least_squares(rows: Sequence[tuple[tuple[float, ...], float]]) -> tuple[float, ...]:
    """Least-squares coefficients, none negative: the most negative one is set to 0 and the rest fitted
    again."""
    matrix: npt.NDArray[np.float64] = np.array([features for features, _ in rows], np.float64)
    target = np.array([seconds for _, seconds in rows])
    kept = [i for i in range(matrix.shape[1]) if np.any(matrix[:, i])]
    while True:
        scale = matrix[:, kept].max(axis=0)
        found = np.linalg.lstsq(matrix[:, kept] / scale, target, rcond=None)[0] / scale
        if len(kept) == 1 or found.min() >= 0.0:
            break
        kept.pop(int(np.argmin(found * scale)))
    coefficients = np.zeros(matrix.shape[1])
    coefficients[kept] = np.maximum(found, 0.0)
    return tuple(float(c) for c in coefficients)


def _fit_copies(completed: Sequence[OperationEnded]) -> dict[Channel, tuple[float, float]]:
    """Linear in bytes. A channel that copied nothing is assumed to be as fast as copy-in."""
    rows: dict[Channel, list[tuple[tuple[float, ...], float]]] = defaultdict(list)
    for ended in completed:
        if isinstance(ended, StepEnded) or isinstance(ended.started, StartedCompaction):
            continue
        started, done = ended.started, ended.done
        if started.n_bytes and done.ok:
            rows[started.channel].append(((1.0, started.n_bytes), done.at_s - started.at_s))
    if not rows[Channel.COPY_IN]:
        raise InternalError("a cost model cannot be fitted to no copy")
    fits = {channel: _least_squares(found) for channel, found in rows.items() if found}
    known = fits[Channel.COPY_IN]
    return {
        channel: (fits.get(channel, known)[0], fits.get(channel, known)[1])
        for channel in (Channel.COPY_IN, Channel.COPY_OUT, Channel.FETCH)
    }


def _turnaround_s(completed: Sequence[OperationEnded]) -> float:
    steps = [ended for ended in completed if isinstance(ended, StepEnded)]
    gaps = [after.started.at_s - before.done.at_s for before, after in pairwise(steps)]
    short = [gap for gap in gaps if 0.0 < gap < _LONGEST_TURNAROUND_S]
    n_iterations = sum(len(step.done.ends_s) for step in steps)
    return float(np.median(short)) * len(short) / n_iterations if short else 0.0
