"""Building steps: prompt chunks on the prefill grid, decode rows, and how often a step may be repeated.

Shared by all policies, which decide what model steps.
"""

from collections.abc import Collection, Iterable, Iterator
from math import inf

from tokenmux.core.cost import StepWork
from tokenmux.core.event import Cancelled, Event, ModelRemoved, Paused, Withdrawn
from tokenmux.core.plan import Chunk, Step
from tokenmux.core.prefix import PrefixKey
from tokenmux.core.request import RequestId
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView, RequestView

_LEAST_STEP_S = 1e-9
"""Lower bound of a step's estimated duration, whatever the facts of model and device say."""


def urgency(request: RequestView) -> tuple[float, float, RequestId]:
    """The order in which requests are served. No two are alike: of requests that are due at the same time,
    each would give up its KV for the other in turn."""
    asked = request.request
    return inf if request.is_paused else request.due_s, asked.arrival_s, asked.id


def decode_chunks(model: ModelView) -> list[Chunk]:
    """One row for every request that decodes."""
    return [Chunk(request.request.id, request.n_tokens - 1, 1) for request in model.decoding.values()]


def mixed_chunks(view: InstanceView, model: ModelView, prompts: Iterable[RequestView]) -> list[Chunk]:
    """These prompts of the model beside a row for every request that decodes.

    Beside rows, prompts are cut to what rides along for next to nothing: the rows would have needed the step
    anyway.
    """
    prompts = list(prompts)
    return prefill_chunks(view, prompts, _riding_tokens(view, model, prompts)) + decode_chunks(model)


def _riding_tokens(view: InstanceView, model: ModelView, prompts: list[RequestView]) -> int | None:
    """How many tokens of prompts take no longer than reading the weights, which the rows need too.

    None if not one piece does, if there is nothing to ride along, or if a prompt is long.
    """
    device, facts, n_rows = view.device, model.facts, len(model.decoding)
    cut = device.cut_tokens
    if not n_rows or not prompts or cut == device.prefill_chunk_tokens:
        return None
    if any(request.is_long for request in prompts):
        return None
    read_s = facts.n_bytes / device.memory_bytes_per_s
    token_s = 2 * facts.n_parameters / device.flops_per_s
    n_pieces = (int(read_s / token_s) - n_rows) // cut
    return n_pieces * cut if n_pieces > 0 else None


def prefill_chunks(
    view: InstanceView, requests: Collection[RequestView], most: int | None = None
) -> list[Chunk]:
    """Chunks of these requests, the most urgent first, that fill one cell of the prefill grid; or
    pieces of at most `most` tokens together.

    A request waits if another one computes the same beginning in this step: it will be given that.
    """
    grid, cut = view.device.prefill_chunk_tokens, view.device.cut_tokens
    budget = most or grid
    chunks: list[Chunk] = []
    computed: set[PrefixKey] = set()
    for request in sorted(requests, key=urgency) if len(requests) > 1 else requests:
        cell = request.next_cell
        if cell is not None:
            if cell in computed:
                continue
            computed.add(cell)
        start = request.n_computed
        end = min(request.n_tokens, start - start % grid + grid)
        if end > request.request.n_prompt > start:
            end = min(request.n_tokens, start + grid)
        if end - start > budget and most:
            end = (start + budget) // cut * cut
            if end <= start:
                break
        elif chunks and end - start > budget:
            break
        chunks.append(Chunk(request.request.id, start, end - start))
        budget -= end - start
        if budget <= 0:
            break
    return chunks


def single_chunks(view: InstanceView, model: ModelView) -> Iterator[Chunk]:
    """What a step of the model could hold: one chunk for each possible request, generated lazily."""
    for request in (*model.decoding.values(), *model.waiting.values()):
        yield from chunks_of(view, model, request)


def chunks_of(view: InstanceView, model: ModelView, request: RequestView) -> list[Chunk]:
    """What a step could compute of this request: a row, or the next chunk of its prompt."""
    if request.request.id in model.decoding:
        return [Chunk(request.request.id, request.n_tokens - 1, 1)]
    return prefill_chunks(view, [request])


def as_many_as_fit(view: InstanceView, chunks: Iterable[Chunk]) -> list[Chunk]:
    """The most urgent chunks whose KV finds room, within one cell of the prefill grid."""
    fitting: list[Chunk] = []
    budget = view.device.prefill_chunk_tokens
    for chunk in sorted(chunks, key=lambda c: urgency(view.requests[c.request])):
        if (not fitting or chunk.n_tokens <= budget) and view.can_run([*fitting, chunk]):
            fitting.append(chunk)
            budget -= chunk.n_tokens
    return fitting


def decode_work(model: ModelView) -> StepWork:
    """The work of one decode step over all of the model's decoding requests."""
    return StepWork(
        decode_rows=len(model.decoding), context_tokens=sum(r.n_tokens for r in model.decoding.values())
    )


def repetitions(view: InstanceView, model: ModelView, chunks: list[Chunk], seconds: float) -> int:
    """How often the step may be repeated within `seconds` of estimated time: 1 unless it holds only decode
    rows."""
    rows = context = 0
    left = 1 << 30
    for chunk in chunks:
        request = view.requests[chunk.request]
        if chunk.n_tokens > 1 or request.n_tokens != chunk.start + 1 or not request.n_drawn:
            return 1
        rows += 1
        context += request.n_tokens
        left = min(left, request.request.max_tokens - request.n_drawn)
    step_s = view.cost.step_s(model.facts, StepWork(decode_rows=rows, context_tokens=context))
    repeat = max(1, int(min(left, seconds / max(step_s, _LEAST_STEP_S))))
    while repeat > 1 and not view.can_run(chunks, repeat):
        repeat //= 2
    return repeat


def must_end(step: Step, event: Event) -> bool:
    """True if a burst ends for this event under any policy: a request must leave it, or its model does."""
    match event:
        case Cancelled() | Paused() | Withdrawn():
            return any(chunk.request == event.request for chunk in step.chunks)
        case ModelRemoved():
            return event.model == step.model
    return False


def shortest_tpot_s(view: InstanceView, model: ModelView) -> float:
    """The strictest TPOT of the requests that a step could advance now, but no longer than the pool's own.

    So a request that can wait for ever does not hold the device for ever.
    """
    own = (r.request.service.tpot_s for file in (model.waiting, model.decoding) for r in file.values())
    return min(view.service.tpot_s, *own)
