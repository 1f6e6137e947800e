"""A model's decode step as one recorded graph: the same operations in the same order, without Python between
them.

A step of a small model is a thousand operations of microseconds, and calling modules costs more than running
these. So the decode step of transformers' own model is recorded once (`torch.jit.trace`) with weights, KV
views and index arrays as inputs, and then run by TorchScript's interpreter, which changes and fuses nothing
(except that half a head's size is a number, not a computation). Measured on SmolLM2-135M at batch 1, beyond
the matrix products: 7.5 ms of CPU time as modules, 3.2 ms recorded. Recording takes half a second and copies
no weights.

Everything is checked. A model is not recorded if tracing warns that a value became a constant, and a
recording is refused unless it gives the same bits as the modules, in logits and in KV, for steps of other
sizes than the recorded one.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tokenmux.core.facts import KvShape
from tokenmux.models.network.batch import DecodeInputs, DecodeTiles, KvViews, Segment, StepBatch
from tokenmux.models.network.skeleton import BUILDING, Skeleton

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, StepBatch | DecodeInputs], torch.Tensor]
"""The logits of a step, from its token ids, its positions, the rows whose logits are wanted, and what
attention needs."""

_RECORDED = (3.0, 0.1, 1.5)
_CHECKED = ((0.1,), (1.5, 0.1), (0.3, 0.1), (0.2, 3.5, 1.0, 2.5, 0.1))
"""Contexts of the rows of a step, in tiles: one row and several, one tile each and several, merged in trees
of two sizes."""


@dataclass(frozen=True, slots=True)
class RecordedDecode:
    """A graph that computes the logits of any step without prompt rows. `windows` are those of the model's
    layers."""

    graph: Callable[..., torch.Tensor]
    windows: tuple[int | None, ...]

    def logits(self, batch: StepBatch, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The logits `[row, vocabulary]` of `batch`, with `weights` as the skeleton orders them."""
        # The optimising executor recompiles in the first two runs (0.5 s each) and was no faster afterwards.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self.graph(*_arguments(batch, self.windows, weights))


def record(
    skeleton: Skeleton,
    forward: Forward,
    lay_out: Callable[[Sequence[Segment], KvViews], StepBatch],
    shape: KvShape,
) -> RecordedDecode | None:
    """Record the decode step of a bound skeleton. None if it cannot be recorded or does not give the same
    bits."""
    with BUILDING:  # the default dtype must not change
        return _record(skeleton, forward, lay_out, shape)


def _record(
    skeleton: Skeleton,
    forward: Forward,
    lay_out: Callable[[Sequence[Segment], KvViews], StepBatch],
    shape: KvShape,
) -> RecordedDecode | None:
    weights = skeleton.tensors
    try:
        batch = _example(_RECORDED, lay_out, shape, skeleton)
        forward(batch.token_ids, batch.positions, batch.logit_rows, batch)
        recorded = _trace(skeleton, forward, batch)
        if recorded is None:
            return None
        for contexts in (_RECORDED, *_CHECKED):
            expected, got = (_example(contexts, lay_out, shape, skeleton) for _ in range(2))
            logits = forward(expected.token_ids, expected.positions, expected.logit_rows, expected)
            same = torch.equal(recorded.logits(got, weights), logits)
            if not same or not torch.equal(got.views.kv, expected.views.kv):
                return None
    except Exception:  # noqa: BLE001  refusing is always safe, and models, tracer and parser each raise their own
        return None
    return recorded


def _trace(skeleton: Skeleton, forward: Forward, batch: StepBatch) -> RecordedDecode | None:
    windows, n_layers, weights = batch.windows, batch.views.shape.n_layers, skeleton.tensors

    def flat(
        ids: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        write_lines: torch.Tensor,
        *rest: torch.Tensor,
    ) -> torch.Tensor:
        tiles = {w: DecodeTiles(*rest[4 * i : 4 * i + 4]) for i, w in enumerate(windows)}
        views = rest[4 * len(windows) :]
        skeleton.point(views[2 * n_layers :])
        inputs = DecodeInputs(write_lines, tiles, views[:n_layers], views[n_layers : 2 * n_layers])
        with _HalvesAreNumbers():
            return forward(ids, positions, logit_rows, inputs)

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            graph = torch.jit.trace(  # type: ignore[no-untyped-call]
                flat, _arguments(batch, windows, weights), check_trace=False
            )
    finally:
        skeleton.point(weights)
    if any(_froze_a_value(warning) for warning in caught):
        return None
    torch._C._jit_pass_peephole(
        graph.graph, True
    )  # a size that becomes a tensor and then a number again is a number
    torch._C._jit_pass_dce(graph.graph)
    return RecordedDecode(graph, windows)


def _froze_a_value(warning: warnings.WarningMessage) -> bool:
    """True if modelling code branched on a tensor's value or size. Branches inside torch only check its
    arguments."""
    inside_torch = Path(warning.filename).is_relative_to(Path(torch.__file__).parent)
    frozen = issubclass(warning.category, torch.jit.TracerWarning)  # type: ignore[attr-defined]
    return frozen and not inside_torch


class _HalvesAreNumbers(TorchFunctionMode):
    """While recording, treat a size divided by a number as a constant: rotary embeddings halve the head's
    size in every layer.

    A size that differs between steps would make a wrong recording, which the comparison of bits finds.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__floordiv__ and args[0].ndim == 0 and isinstance(args[1], int):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return int(args[0]) // args[1]
        return func(*args, **(kwargs or {}))


def _arguments(
    batch: StepBatch, windows: Sequence[int | None], weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    tiles = (tensor for window in windows for tensor in batch.decode_tiles(window))
    return (
        batch.token_ids,
        batch.positions,
        batch.logit_rows,
        batch.write_lines,
        *tiles,
        *batch.tokens,
        *batch.units,
        *weights,
    )


def _example(
    contexts: Sequence[float],
    lay_out: Callable[[Sequence[Segment], KvViews], StepBatch],
    shape: KvShape,
    skeleton: Skeleton,
) -> StepBatch:
    """A step of one decode row for each context, over few blocks: all rows read block 0, each writes into
    its own."""
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn(
        (len(contexts) + 1, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim),
        generator=generator,
    )
    views = KvViews.of(kv.to(skeleton.model.dtype), shape)
    segments = []
    for row, context in enumerate(contexts):
        position = int(context * views.tile_tokens)
        blocks = [0] * (position // shape.block_size) + [row + 1]
        segments.append(Segment([row + 1], position, 0, blocks))
    return lay_out(segments, views)
