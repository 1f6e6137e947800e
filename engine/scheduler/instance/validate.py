"""Checks that a plan is legal in the present state. A policy that breaks a rule here has a bug, and learns of
it at once.

Rules about room are the ledger's (`tokenmux.scheduler.memory.ledger`); these say what may be used when.
"""

from collections.abc import Sequence

from tokenmux.core.errors import IllegalPlan, InternalError
from tokenmux.core.event import StepDone
from tokenmux.core.handles import ExtentMove
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Compact, Fetch, Operation, PageIn, PageOut, Step
from tokenmux.core.started import StartedStep
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.model_state import ModelState
from tokenmux.scheduler.instance.request_state import RequestState

_CHANNEL_OF = {
    Activate: Channel.COPY_IN,
    PageIn: Channel.COPY_IN,
    Compact: Channel.COPY_IN,
    PageOut: Channel.COPY_OUT,
    Fetch: Channel.FETCH,
    Step: Channel.COMPUTE,
}


def channel(asked: Channel, operation: Operation) -> None:
    if _CHANNEL_OF[type(operation)] is not asked:
        raise IllegalPlan(f"{operation} was planned for the {asked.name} channel")


def step(state: LiveState, model: ModelState, plan: Step) -> None:
    """Raise unless weights are resident and not moving, KV is on the device, and chunks continue their
    requests where prompts may be cut."""
    if model.stage is not Residency.RESIDENT or model.is_moving:
        raise IllegalPlan(f"step of {plan.model}, whose weights are not usable ({model.residency.value})")
    if not plan.chunks or plan.repeat < 1 or len({chunk.request for chunk in plan.chunks}) < len(plan.chunks):
        raise IllegalPlan(f"step of {plan.model} has no chunks, no repetitions, or a request twice")
    grid = state.device.cut_tokens
    for chunk in plan.chunks:
        request = state.requests.get(chunk.request)
        if request is None or request.to_end or request.is_paused or request.model is not model:
            raise IllegalPlan(f"{chunk.request} is not a runnable request of {plan.model}")
        end = chunk.start + chunk.n_tokens
        if not request.kv.on_device or chunk.start != request.kv.n_computed or end > request.n_tokens:
            raise IllegalPlan(f"{chunk} does not continue its request ({request.kv.n_computed} computed)")
        if chunk.n_tokens < 1 or (end < request.request.n_prompt and end % grid):
            raise IllegalPlan(f"{chunk} does not end on the prefill grid of {grid} tokens")
        left = request.request.max_tokens - request.n_drawn
        if plan.repeat > 1 and (chunk.n_tokens > 1 or end != request.n_tokens or plan.repeat > left):
            raise IllegalPlan(f"{chunk} cannot be repeated {plan.repeat} times")
    if not state.can_run(plan.chunks, plan.repeat):
        raise IllegalPlan(
            f"no room for the KV of {len(plan.chunks)} chunks of {plan.model}, {plan.repeat} times"
        )


def activate(state: LiveState, model: ModelState) -> None:
    if model.stage is not None:
        raise IllegalPlan(f"{model.facts.id} is already {model.stage.value}")
    for image in state.ledger.absent_images(model.facts):
        if not state.ledger.cache.has(image.id):
            raise IllegalPlan(f"{model.facts.id} cannot be activated: {image.id} is not in the host cache")


def evict(state: LiveState, model: ModelState) -> None:
    if model.stage is not Residency.RESIDENT:
        raise IllegalPlan(f"{model.facts.id} is not resident and cannot be evicted")
    if model.pinned and state.resize_bytes is None:
        raise IllegalPlan(f"{model.facts.id} is pinned and cannot be evicted")
    running = state.in_flight.get(Channel.COMPUTE)
    steps = isinstance(running, StartedStep) and running.model.id == model.facts.id
    if steps or model.is_moving:
        raise IllegalPlan(f"{model.facts.id} is in use by an operation in flight and cannot be evicted")


def forget(request: RequestState, blocks: int) -> None:
    """Check a `Drop` or `Discard`. That there must be blocks to forget also bounds how often a policy may
    ask for it."""
    if request.in_step or request.in_copy:
        raise IllegalPlan(f"{request.id} is in use by an operation in flight; its KV cannot be forgotten")
    if not blocks:
        raise IllegalPlan(f"{request.id} has no KV to forget")


def paging(asked: Channel, requests: Sequence[RequestState]) -> None:
    """Check a page-in or page-out. A page-out may begin while its requests step, and they may step while it
    runs: it counts only the tokens computed before it began."""
    if not requests or len({request.id for request in requests}) < len(requests):
        raise IllegalPlan("paging of no request, or of one twice")
    for request in requests:
        if request.in_copy or request.to_end:
            raise IllegalPlan(f"{request.id} is already being copied, or over")
        if asked is Channel.COPY_IN and (not request.kv.n_missing or request.in_step):
            raise IllegalPlan(f"{request.id} has nothing to page in, or steps")
        if asked is Channel.COPY_OUT and request.kv.is_clean:
            raise IllegalPlan(f"{request.id} has nothing to page out")


def fetch(state: LiveState, model: ModelState) -> None:
    if model.residency is not Residency.DISK:
        raise IllegalPlan(f"{model.facts.id} need not be fetched: it is {model.residency.value}")
    if not state.ledger.cache.can_fetch(model.facts.images):
        raise IllegalPlan(f"the host cache has no room for {model.facts.id}")


def compact(plan: Compact, moves: tuple[ExtentMove, ...] | None) -> tuple[ExtentMove, ...]:
    if not moves:
        raise IllegalPlan(f"no moves make {plan.n_bytes} bytes contiguous, or none are needed")
    return moves


def step_done(plan: Step, event: StepDone) -> None:
    """Check a report of a step: a body that reports nonsense has a bug as well."""
    if not 1 <= len(event.ends_s) <= plan.repeat or event.ends_s[-1] > event.at_s:
        raise InternalError(f"step {event.operation} reports {len(event.ends_s)} iterations of {plan.repeat}")
