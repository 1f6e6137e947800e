"""Resolves started operations into launches for tests of devices, whose books are a ledger alone."""

from collections.abc import Callable

from tokenmux.core.facts import ModelId
from tokenmux.core.handles import Transfer
from tokenmux.core.plan import Chunk
from tokenmux.core.request import RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.messages.launches import (
    ArenaMove,
    FetchLaunch,
    Launch,
    MoveLaunch,
    OperationId,
    PagedBlocks,
    PagingLaunch,
    PlacedImage,
    StepLaunch,
    StepSegment,
    WeightsLaunch,
)
from tokenmux.scheduler.memory.ledger import Ledger


def launch_of(started: Started, ledger: Ledger, model_of: Callable[[RequestId], ModelId]) -> Launch:
    """What a device has to do, with token 0 for every token and nothing drawn."""
    operation = OperationId(started.id)
    match started:
        case StartedStep(operation=step):
            segments = tuple(segment_of(chunk, ledger) for chunk in step.chunks)
            return StepLaunch(operation, step.model, segments, step.repeat)
        case StartedActivation(images=images):
            placed = (
                PlacedImage(image.id, ledger.arena.offset(ledger.extent(image.id)), image.n_bytes)
                for image in images
            )
            return WeightsLaunch(operation, tuple(placed))
        case StartedPageIn(paged=paged) | StartedPageOut(paged=paged):
            blocks = (paged_blocks(model_of(each.request), each.transfers, ledger) for each in paged)
            return PagingLaunch(operation, isinstance(started, StartedPageIn), tuple(blocks))
        case StartedCompaction(moves=moves):
            return MoveLaunch(
                operation, tuple(ArenaMove(move.source, move.target, move.n_bytes) for move in moves)
            )
        case StartedFetch(model=model, images=images):
            return FetchLaunch(operation, model.id, images)


def segment_of(chunk: Chunk, ledger: Ledger) -> StepSegment:
    handles = ledger.kv[chunk.request].device
    blocks = tuple(ledger.blocks.block_index(handle) for handle in handles if handle is not None)
    return StepSegment((0,) * chunk.n_tokens, chunk.start, 0, blocks, draws=False, sampling=Sampling())


def paged_blocks(model: ModelId, transfers: tuple[Transfer, ...], ledger: Ledger) -> PagedBlocks:
    return PagedBlocks(
        model,
        tuple(ledger.blocks.block_index(transfer.device) for transfer in transfers),
        tuple(ledger.host_blocks.block_index(transfer.host) for transfer in transfers),
    )
