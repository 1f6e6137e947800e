"""The default policy: what is due first goes first, on every channel, and copies overlap with steps.

A model's *slack* is the time until the earliest next-token deadline of its requests; one that is late by more
than a little counts as due later (`tokenmux.scheduler.metrics.shares`). The rules:

1. Compute (`turns`) runs the resident model with the least slack in short bursts; prefill chunks and decode
   rows share a step. The oldest waiting prompt goes first if that makes no request late: users notice the
   first token most.
2. Copy-in (`loading`) brings back the KV of resident models first, then the least-slack model that is not
   resident: its KV, if there is room beside the weights, then these, so that its first steps are full.
3. Room is made (`loading`, `eviction`) by evicting models without requests (least recently used first), then
   those with the most slack. The latter only go if their slack exceeds the candidate's by the time of a few
   reloads, and once they have stepped, so that no two models chase each other out.
4. KV stays on the device when its model leaves. Only if it takes up the room of weights is it written through
   in the background (copy-out) and dropped, that of the model that will step last first.
5. A load gives way to a request that would be late behind it, if those waiting for the load have time
   (`making_way`).
6. While nothing can step, `rescue` takes over: everything serves the most urgent request that could, until it
   has stepped.
"""

from collections.abc import Iterable

from tokenmux.core.event import Arrived, CopyDone, Event, ModelAdded, ModelRemoved
from tokenmux.core.facts import ModelId
from tokenmux.core.phases import Residency
from tokenmux.core.plan import IDLE, Activate, Channel, Fetch, PageOut, Plan, Step
from tokenmux.scheduler.policy import eviction, loading, making_way, rescue, turns
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView, RequestView
from tokenmux.scheduler.policy.steps import must_end


class SlackPolicy:
    """Deadline order on one instance. Its only state is the set of models not yet fetched from disk, and
    whether the instance was blocked when it last looked."""

    name = "slack"

    def __init__(self) -> None:
        self._unfetched: dict[ModelId, None] = {}
        self._rescue = rescue.Rescue()

    def on_event(self, event: Event, view: InstanceView) -> None:
        match event:
            case ModelAdded(_, facts):
                self._unfetched[facts.id] = None
            case ModelRemoved(_, model_id):
                self._unfetched.pop(model_id, None)
            case CopyDone() if self._unfetched:
                here = [m for m in self._unfetched if view.models[m].residency is not Residency.DISK]
                for model_id in here:
                    del self._unfetched[model_id]

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        if channel is Channel.FETCH and not view.any_on_disk:
            return IDLE
        if self._rescue.is_blocked(view):
            return self._rescue.plan(channel, view)
        match channel:
            case Channel.COMPUTE:
                return turns.compute(view)
            case Channel.COPY_IN:
                return loading.copy_in(view)
            case Channel.COPY_OUT:
                return _plan_copy_out(view)
            case Channel.FETCH:
                return _plan_fetch(view, self._unfetched)

    def makes_way(
        self, operation: Activate | Fetch, since_s: float, arrived: Arrived, view: InstanceView
    ) -> bool:
        return making_way.makes_way(operation, since_s, arrived, view)

    def next_to_load(self, view: InstanceView) -> ModelView | None:
        """The live model with the least slack, among those not on the device nor on their way there."""
        there = (Residency.RESIDENT, Residency.LOADING)
        absent = (m for m in view.live_models.values() if m.n_live and m.residency not in there)
        return min(absent, key=lambda model: model.due_s, default=None)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        """True if a request that was not in the burst can now run, or one in it must leave. Whoever
        joins a burst late needs steps of its own later."""
        match event:
            case Arrived(_, request):
                return request.model in view.resident_models
            case CopyDone() if view.in_flight(Channel.COPY_IN) is None:
                return turns.can_be_joined(step, view) or turns.is_urgent(step, view)
        return must_end(step, event)


def _plan_copy_out(view: InstanceView) -> Plan:
    """If memory is short, write through KV that can wait longest: paused requests first, then models that
    are not resident."""
    resident_too = _all_paused(view)
    if not (resident_too or eviction.is_short(view)):
        return IDLE
    best: RequestView | None = None
    for request in eviction.kv_holders(view, of_residents=resident_too):
        if request.is_clean or (
            best is not None and eviction.next_use_s(view, request) <= eviction.next_use_s(view, best)
        ):
            continue
        if view.can_page_out(request.request.id):
            best = request
    return Plan(PageOut((best.request.id,))) if best else IDLE


def _all_paused(view: InstanceView) -> bool:
    """True if all requests are paused and nothing runs or comes in: then even KV of resident models may go.

    While requests wait that cannot run, `Rescue.is_blocked` is true, and its plan was taken before.
    """
    if view.in_flight(Channel.COMPUTE) is not None or view.in_flight(Channel.COPY_IN) is not None:
        return False
    return bool(view.live_models) and not any(model.n_live for model in view.live_models.values())


def _plan_fetch(view: InstanceView, unfetched: Iterable[ModelId]) -> Plan:
    """Fetch what requests wait for, by slack; then, while the host cache has room to spare, new models."""
    urgent = rescue.fetch(view)
    if urgent.operation is not None:
        return urgent
    asked = eviction.fetch_asked(view)
    if asked.operation is not None:
        return asked
    for model_id in unfetched:
        is_on_disk = view.models[model_id].residency is Residency.DISK
        if is_on_disk and view.can_fetch(model_id) and not view.fetch_would_drop(model_id):
            return Plan(Fetch(model_id))
    return IDLE
