"""Makes started operations for those who test a device without an instance. They begin at 0 s, and copy
one byte."""

from collections.abc import Iterable

from tokenmux.core.cost import NO_WORK, StepWork
from tokenmux.core.facts import Image, ImageId, ModelFacts
from tokenmux.core.handles import ExtentMove, Transfer
from tokenmux.core.plan import Activate, Chunk, Compact, Fetch, PageIn, PageOut, Step
from tokenmux.core.request import RequestId
from tokenmux.core.started import (
    PagedRequest,
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
    SwapReason,
)

BlocksByRequest = Iterable[tuple[RequestId, tuple[Transfer, ...]]]
"""Requests with the blocks of each that are paged."""


def make_started_step(
    number: int, model: ModelFacts, chunks: Iterable[Chunk] = (), work: StepWork = NO_WORK, repeat: int = 1
) -> StartedStep:
    return StartedStep(number, 0.0, Step(model.id, tuple(chunks), repeat), model, work)


def make_started_activation(
    number: int, model: ModelFacts, images: tuple[Image, ...] | None = None, n_bytes: int = 1
) -> StartedActivation:
    """The activation of `model`, which copies `images`; by default all images of the model."""
    images = model.images if images is None else images
    return StartedActivation(number, 0.0, Activate(model.id), model, images, n_bytes, SwapReason.FIRST, 0.0)


def make_started_fetch(
    number: int, model: ModelFacts, dropped: Iterable[ImageId] = (), n_bytes: int = 1
) -> StartedFetch:
    return StartedFetch(number, 0.0, Fetch(model.id), model, model.images, tuple(dropped), n_bytes)


def make_started_page_in(number: int, blocks: BlocksByRequest, n_bytes: int = 1) -> StartedPageIn:
    paged = _paged(blocks)
    return StartedPageIn(number, 0.0, PageIn(tuple(each.request for each in paged)), paged, n_bytes)


def make_started_page_out(number: int, blocks: BlocksByRequest, n_bytes: int = 1) -> StartedPageOut:
    paged = _paged(blocks)
    return StartedPageOut(number, 0.0, PageOut(tuple(each.request for each in paged)), paged, n_bytes)


def make_started_compaction(number: int, moves: tuple[ExtentMove, ...]) -> StartedCompaction:
    n_bytes = sum(move.n_bytes for move in moves)
    return StartedCompaction(number, 0.0, Compact(n_bytes), moves, n_bytes)


def _paged(blocks: BlocksByRequest) -> tuple[PagedRequest, ...]:
    return tuple(PagedRequest(request, 0, transfers) for request, transfers in blocks)
