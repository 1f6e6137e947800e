"""Turns what an instance has started into a launch: handles become offsets and indices of blocks, requests
become token ids and how to draw more.

Everything is read from the books when the operation begins, and at no other time.
"""

from collections.abc import Mapping

from tokenmux.core.errors import InternalError
from tokenmux.core.facts import ModelFacts
from tokenmux.core.plan import Chunk
from tokenmux.core.request import RequestId
from tokenmux.core.started import (
    PagedRequest,
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
    Bind,
    FetchLaunch,
    Launch,
    MoveLaunch,
    OperationId,
    PagedBlocks,
    PagingLaunch,
    PlacedImage,
    StepGrammar,
    StepLaunch,
    StepPast,
    StepSegment,
    WeightsLaunch,
)
from tokenmux.node.request_content import Content
from tokenmux.scheduler.instance.instance import Instance


def launch_of(started: Started, instance: Instance, contents: Mapping[RequestId, Content]) -> Launch:
    """Resolve an operation that has just begun on `instance`."""
    operation = OperationId(started.id)
    match started:
        case StartedStep(operation=step):
            segments = tuple(_segment(chunk, instance, contents[chunk.request]) for chunk in step.chunks)
            return StepLaunch(operation, step.model, segments, step.repeat)
        case StartedActivation(images=images):
            ledger = instance.ledger
            offsets = (ledger.arena.offset(ledger.extent(image.id)) for image in images)
            placed = (
                PlacedImage(image.id, offset, image.n_bytes)
                for image, offset in zip(images, offsets, strict=True)
            )
            return WeightsLaunch(operation, tuple(placed))
        case StartedPageIn(paged=paged):
            return PagingLaunch(operation, True, tuple(_paged(one, instance) for one in paged))
        case StartedPageOut(paged=paged):
            return PagingLaunch(operation, False, tuple(_paged(one, instance) for one in paged))
        case StartedCompaction(moves=moves):
            return MoveLaunch(operation, tuple(ArenaMove(m.source, m.target, m.n_bytes) for m in moves))
        case StartedFetch(model=model, images=images):
            return FetchLaunch(operation, model.id, images)


def binding_of(model: ModelFacts, instance: Instance) -> Bind:
    """Where the weights of a model on `instance` are, or are just being copied."""
    if len(model.images) != 1:
        raise InternalError(f"{model.id} has {len(model.images)} images; a runner is bound to one")
    ledger = instance.ledger
    return Bind(model.id, ledger.arena.offset(ledger.extent(model.images[0].id)))


def _segment(chunk: Chunk, instance: Instance, content: Content) -> StepSegment:
    request = instance.requests[chunk.request]
    submit, end = content.submit, chunk.start + chunk.n_tokens
    draws = content.draws(end)
    return StepSegment(
        tuple(content.token_ids[chunk.start : end]),
        chunk.start,
        request.request.n_prompt,
        instance.ledger.blocks.block_indices(request.kv.device),
        draws,
        submit.sampling,
        submit.min_tokens,
        submit.stop_token_ids,
        _past(content) if draws and submit.sampling.rules is not None else None,
        content.telling(chunk.start, end),
        _grammar(content) if draws and submit.grammar is not None else None,
        content.pooled(chunk.start, end),
    )


def _past(content: Content) -> StepPast | None:
    """What the rules of a request look at. Taken from its tokens at each launch: nothing has to follow swaps
    and moves."""
    submit = content.submit
    rules = submit.sampling.rules
    if rules is None or not rules.look_at_output:
        return None
    return StepPast(content.prompt_tokens, tuple(content.token_ids[submit.request.n_prompt :]))


def _grammar(content: Content) -> StepGrammar | None:
    submit = content.submit
    if submit.grammar is None:
        return None
    return StepGrammar(submit.grammar.id, tuple(content.token_ids[submit.request.n_prompt :]))


def _paged(paged: PagedRequest, instance: Instance) -> PagedBlocks:
    ledger = instance.ledger
    return PagedBlocks(
        instance.requests[paged.request].request.model,
        ledger.blocks.block_indices(transfer.device for transfer in paged.transfers),
        ledger.host_blocks.block_indices(transfer.host for transfer in paged.transfers),
    )
