"""Runs steps of one model: lays them out, calls transformers' model once, draws the tokens.

    runner.pack(image)                      # on a processor, after the image was read
    runner.bind(weights)                    # after the image was copied into the arena
    runner.record()                         # once: decode steps without Python between their operations
    batch = runner.prepare(segments, kv)    # host work, can overlap with another model's step
    tokens = runner.step(batch)             # one forward pass
    batch.advance(tokens)                   # the next step of a repeated decode
    tokens = runner.step(batch)
    runner.unbind()                         # before the extent is freed

The runner knows neither requests nor scheduling: it gets block tables and positions, and writes keys and
values into the blocks in place. A token that a segment draws does not depend on the other segments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from tokenmux.core.errors import InternalError
from tokenmux.core.facts import KvShape
from tokenmux.core.pooling import PooledRows
from tokenmux.core.sampling import LogProbabilities, Sampling
from tokenmux.messages.mask_messages import MaskAnswer
from tokenmux.models.network import kernel_path
from tokenmux.models.network.attention import STEP_ARGUMENT, AttendsItself
from tokenmux.models.network.batch import DecodeInputs, KvViews, Segment, StepBatch
from tokenmux.models.network.by_row import ByRow
from tokenmux.models.network.recording import RecordedDecode, record
from tokenmux.models.network.rows import RowRule, check_rows_of, products_of, row_rule
from tokenmux.models.network.rule_notes import noted_row_rule
from tokenmux.models.network.skeleton import Skeleton, choose_experts
from tokenmux.models.network.staging import Staging
from tokenmux.models.network.summed_rows import hidden_states_of
from tokenmux.models.network.told_rows import padded_rows, run_once
from tokenmux.models.sampling import draw as sampling
from tokenmux.models.sampling.log_probabilities import log_probabilities
from tokenmux.models.sampling.masks import begin_masks

if TYPE_CHECKING:
    from tokenmux.kernels.tiles import StepTiles
    from tokenmux.models.network.kernel_step import KernelBatch, KernelPass

Batch: TypeAlias = "StepBatch | KernelBatch"
"""A laid-out step: for torch, or for the Triton kernels."""

TOLD_AT_ONCE = 64
"""Rows of a prompt whose logits are there at once, on a processor: 40 MB for a vocabulary of 150,000."""


@dataclass(slots=True)
class FoundInPrompts:
    """What a pass tells of prompts: log-probabilities by segment, and sums of hidden states, each with its
    segment."""

    log_probabilities: dict[int, list[LogProbabilities]] = field(default_factory=dict)
    sums: list[tuple[int, PooledRows]] = field(default_factory=list)


RowScorer = Callable[
    [torch.Tensor, Sequence[int], Sequence[sampling.Draw]], tuple[LogProbabilities | None, ...]
]
"""Log-probabilities of tokens, from the logits of their rows."""


class DrawnTokens(NamedTuple):
    """What a step drew for each segment that draws, and the log-probabilities there; empty if no segment asks
    for them. `told` has the log-probabilities in prompts, by segment, for segments that ask for them, and
    `pooled` the sums of hidden states. `faults` says of those (by their places in `tokens`) that cannot go on
    why."""

    tokens: tuple[int, ...]
    log_probabilities: tuple[LogProbabilities | None, ...] = ()
    told: tuple[tuple[int, tuple[LogProbabilities, ...]], ...] = ()
    faults: tuple[tuple[int, str], ...] = ()
    pooled: tuple[tuple[int, PooledRows], ...] = ()


class Runner:
    """One model, bound to weights or not, for steps over KV of `shape`. Not thread-safe.

    If KV lies on a GPU, steps use the Triton kernels, cut as the architecture's table says. With `tiles` they
    do so on any device, cut by those tiles (in Triton's interpreter, for example).
    """

    def __init__(
        self,
        skeleton: Skeleton,
        shape: KvShape,
        *,
        prefill_chunk_tokens: int,
        tiles: "StepTiles | None" = None,
    ) -> None:
        self._skeleton = skeleton
        self._shape = shape
        self._grid = prefill_chunk_tokens
        self._dtype = skeleton.model.dtype
        self._products = products_of(skeleton.model)
        self._views: KvViews | None = None
        self._recorded: RecordedDecode | None = None
        self._tiles = tiles
        self._tiles_of: dict[torch.device, StepTiles | None] = {}
        self._staging_of: dict[torch.device, Staging] = {}

    @property
    def bound(self) -> bool:
        return self._skeleton.bound

    def pack(self, image: torch.Tensor) -> None:
        """Rearrange an image as read from its file, a `uint8` tensor, in place, into what `bind` expects."""
        self._skeleton.pack(image)

    def bind(self, weights: torch.Tensor) -> None:
        """Point the model at its image in the arena, a `uint8` tensor."""
        self._skeleton.bind(weights)

    def unbind(self) -> None:
        """Let go of the image. Steps are refused until the next `bind`."""
        self._skeleton.unbind()

    def forget_kv(self) -> None:
        """Let go of the KV of the last step."""
        self._views = None

    def prepare(self, segments: Sequence[Segment], kv: torch.Tensor) -> Batch:
        """Lay out a step over `kv[block, layer, k|v, head, token, dim]`, in the model's dtype.

        Raises InternalError if a chunk lies off the prefill grid or a segment's blocks do not hold it,
        UnsupportedModel if KV lies on a device whose kernels cannot serve the model.
        """
        tiles = self._tiles_on(kv.device)
        if tiles is not None:
            staging = self._staging_on(kv.device)
            return kernel_path.lay_out(
                segments, kv, self._shape, grid=self._grid, tiles=tiles, staging=staging
            )
        views = self._views
        if views is None or views.kv.data_ptr() != kv.data_ptr() or views.kv.shape != kv.shape:
            views = self._views = KvViews.of(kv, self._shape)
        return self._lay_out(segments, views)

    @torch.inference_mode()
    def record(self) -> None:
        """Record the decode step of the bound model, so that later ones take less time. Takes about half a
        second, once.

        A model that cannot be recorded bit for bit keeps running as modules.
        """
        if self._recorded is None:
            self._recorded = record(self._skeleton, self._by_row, self._lay_out, self._shape)

    @property
    def recorded(self) -> bool:
        return self._recorded is not None

    def share_recording(self, twin: "Runner") -> None:
        """Use the recording of `twin`, a runner of the same model over a skeleton of its own: it could be
        made while steps ran on this one."""
        self._recorded = twin._recorded

    @torch.inference_mode()
    def logits(self, batch: Batch, told: FoundInPrompts | None = None) -> torch.Tensor:
        """Run one forward pass. Returns logits `[row, vocabulary]`: a row for each of `batch.drawing`,
        then padding. Adds what prompts want to be told to `told`."""
        if not self._skeleton.bound:
            raise InternalError("the model is not bound to weights")
        if not isinstance(batch, StepBatch):
            tell, n_rows = batch.log_probabilities, batch.rows_of_a_pass
            return batch.run(lambda p: self._pass(p, told, tell, n_rows, lambda _: n_rows))
        for block in batch.unfilled_blocks:
            batch.views.kv[block].zero_()
        rule, n_rows = batch.rule, batch.token_ids.numel()
        recordable = not batch.n_prompt_rows and batch.drawing and rule.fits_one_piece(n_rows)
        if self._recorded is not None and recordable:
            return self._recorded.logits(batch, self._skeleton.tensors)
        if not batch.told and not batch.pooled:
            return self._by_row(batch.token_ids, batch.positions, batch.logit_rows, batch)
        with ByRow(rule):
            return self._pass(batch, told, log_probabilities, TOLD_AT_ONCE, rule.padded)

    def step(self, batch: Batch) -> list[int | None]:
        """Run one forward pass and draw. Returns the token of each segment, None for segments that draw
        none."""
        tokens: list[int | None] = [None] * len(batch.segments)
        for index, token in zip(batch.drawing, self.draw(batch).tokens, strict=True):
            tokens[index] = token
        return tokens

    @torch.inference_mode()
    def draw(self, batch: Batch) -> DrawnTokens:
        """Run one forward pass and draw a token for each of `batch.drawing`. The masks of those with a
        grammar are computed meanwhile."""
        masks_of = begin_masks([batch.segments[index].constraint for index in batch.drawing])
        found = FoundInPrompts()
        logits = self.logits(batch, found)
        told = tuple((segment, tuple(values)) for segment, values in found.log_probabilities.items())
        pooled = tuple(found.sums)
        if not batch.drawing:
            return DrawnTokens((), told=told, pooled=pooled)
        masks = masks_of()
        draws = [self._draw(batch, index, mask) for index, mask in zip(batch.drawing, masks, strict=True)]
        if isinstance(batch, StepBatch):
            draw, tell = sampling.draw_rows, log_probabilities
        else:
            draw, tell = batch.draw, batch.log_probabilities
        tokens = draw(logits, draws)
        faults = tuple((place, mask.error) for place, mask in enumerate(masks) if mask and mask.error)
        if all(one.sampling.n_likeliest is None for one in draws):
            return DrawnTokens(tuple(tokens), (), told, faults, pooled)
        return DrawnTokens(tuple(tokens), tell(logits, tokens, draws), told, faults, pooled)

    @staticmethod
    def _draw(batch: Batch, index: int, mask: MaskAnswer | None) -> sampling.Draw:
        segment = batch.segments[index]
        position = batch.position(index)
        below_minimum = position - segment.n_prompt < segment.min_tokens
        forbidden = segment.stop_token_ids if below_minimum else ()
        draw = sampling.Draw(segment.sampling, position, forbidden, segment.past)
        return draw if mask is None or mask.error else draw.within(mask.bits)

    def make_ready(self, device: torch.device, notes: Path | None = None) -> None:
        """Do now what the first step over KV on `device` would otherwise do; takes a second or two, and less
        if the folder `notes` has what was found before.

        Raises UnsupportedModel if the model's steps cannot be exact there.
        """
        if self._tiles_on(device) is None:
            if notes is not None:
                noted_row_rule(notes, self._dtype, self._products)
            self._rule()
        else:
            self._staging_on(device)

    def _staging_on(self, device: torch.device) -> Staging:
        if device not in self._staging_of:
            self._staging_of[device] = Staging.on(device)
        return self._staging_of[device]

    def _tiles_on(self, device: torch.device) -> "StepTiles | None":
        """How a step over KV on `device` is cut for the kernels. None if it runs in torch."""
        if self._tiles is not None:
            return self._tiles
        if device not in self._tiles_of:
            model = self._skeleton.model
            tiles = kernel_path.tiles_for(
                device, self._shape, int(model.config.get_text_config().num_attention_heads)
            )
            if tiles is not None:
                check_rows_of(tiles.rows, self._dtype, device.type, self._products)
                choose_experts(model, self._dtype, device.type)
            self._tiles_of[device] = tiles
        return self._tiles_of[device]

    def _lay_out(self, segments: Sequence[Segment], views: KvViews) -> StepBatch:
        return StepBatch(segments, views, dtype=self._dtype, grid=self._grid, rule=self._rule())

    def _rule(self) -> RowRule:
        return row_rule(self._dtype, self._products)

    def _by_row(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        step: StepBatch | DecodeInputs,
    ) -> torch.Tensor:
        """One pass on a processor, where the number of rows matters."""
        with ByRow(self._rule()):
            return self._forward(token_ids, positions, logit_rows, step)

    def _pass(
        self,
        step: "StepBatch | KernelPass",
        told: FoundInPrompts | None,
        tell: RowScorer,
        n_rows: int,
        padded: Callable[[int], int],
    ) -> torch.Tensor:
        """One pass through the model, and again through its head for every `n_rows` rows of prompts of
        which something is to be told. `padded` is the number of rows with which the head runs for some."""

        def logits_of(rows: torch.Tensor) -> torch.Tensor:
            return self._forward(step.token_ids, step.positions, rows, step)

        if told is None or not (step.told or step.pooled):
            return logits_of(step.logit_rows)
        with run_once(self._skeleton.layers), hidden_states_of(self._skeleton.layers) as hidden:
            logits = logits_of(step.logit_rows)
            told.sums += [(rows.segment, rows.sum_of(hidden())) for rows in step.pooled]
            for rows in (piece for told_rows in step.told for piece in told_rows.pieces(n_rows)):
                theirs = logits_of(padded_rows(rows, padded(len(rows.targets)), step.token_ids.device))
                draws = [sampling.Draw(Sampling(n_likeliest=rows.n_likeliest), 0)] * len(rows.targets)
                values = tell(theirs, rows.targets, draws)
                of_segment = told.log_probabilities.setdefault(rows.segment, [])
                of_segment.extend(value for value in values if value is not None)
        return logits

    def _forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        logit_rows: torch.Tensor,
        step: StepBatch | DecodeInputs | AttendsItself,
    ) -> torch.Tensor:
        """One pass through transformers' model, as modules."""
        holder = self._skeleton.step_holder
        holder.step = step
        try:
            output = self._skeleton.model(
                input_ids=token_ids,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=logit_rows,
                **{STEP_ARGUMENT: step},
            )
        finally:
            holder.step = None
        logits: torch.Tensor = output.logits[0]
        return logits
