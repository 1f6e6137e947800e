"""Baseline: the scheduler of Aegaeon (SOSP 2025), re-implemented from the paper's sections on prefill and
decode scheduling.

Instances have fixed roles. Prefill instances serve groups of up to 8 requests of one model, first come first
served; a request joins its model's open group or begins a new one on the least loaded instance. A prefilled
request is handed over, through host memory, to the decode instance that has its model, or to the least loaded
one. Decode instances serve their models in rounds, model i for

    q_i = c / (n_i (alpha - sum 1/n_k)),   alpha = max(c / (min n QMAX) + sum 1/n_k, 0.5),   n_i = TPOT / t_i

seconds (t_i: duration of a step, c: all switch times of the round), and prefetch the next model while one
decodes.

A pool of one instance has no roles: it works in the rounds of a decode instance, which also prefill what
arrives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenmux.core.event import Arrived, CopyDone, Event, StepDone
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import Channel, Plan, Step
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.policy import rescue
from tokenmux.scheduler.policy.baselines import turn_taking
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolView
from tokenmux.scheduler.policy.steps import decode_chunks, decode_work, must_end, prefill_chunks

MAX_GROUP = 8
QMAX_S = 4.0
ALPHA_MIN = 0.5
PREFILL_SHARE = 6 / 16
"""Share of the instances that prefill: the paper's testbed has 6 prefill and 10 decode instances."""


@dataclass(slots=True)
class Group:
    """Requests of one model that are prefilled one after another."""

    model: ModelId
    requests: list[RequestId] = field(default_factory=list)
    n_joined: int = 0


class AegaeonPrefill:
    """Serve groups in the order in which they began."""

    name = "aegaeon"

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._rescue = rescue.Rescue()

    def _join(self, model: ModelId, request: RequestId) -> None:
        group = self.open_group(model)
        if group is None:
            group = Group(model)
            self.groups.append(group)
        group.requests.append(request)
        group.n_joined += 1

    def open_group(self, model: ModelId) -> Group | None:
        return next((g for g in self.groups if g.model == model and g.n_joined < MAX_GROUP), None)

    def on_event(self, event: Event, view: InstanceView) -> None:
        if isinstance(event, Arrived):
            self._join(event.request.model, event.request.id)
        for group in self.groups:
            group.requests = [r for r in group.requests if r in view.models[group.model].waiting]
        self.groups = [group for group in self.groups if group.requests]

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        if not self.groups:
            return _page_out(view) if channel is Channel.COPY_OUT else turn_taking.asked(channel, view)
        first = view.models[self.groups[0].model]
        return turn_taking.take_turn(
            channel, view, first, self._rescue, lambda channel: self._plan(channel, view, first)
        )

    def _plan(self, channel: Channel, view: InstanceView, first: ModelView) -> Plan:
        match channel:
            case Channel.COPY_OUT:
                return _page_out(view)
            case Channel.FETCH:
                return turn_taking.fetch(view, first)
            case Channel.COPY_IN:
                following = next((g.model for g in self.groups if g.model != first.facts.id), None)
                plan = turn_taking.bring_in(view, first) or turn_taking.page_in(view, first)
                if plan is None and following:
                    plan = turn_taking.bring_ahead(view, view.models[following], first)
                return plan or turn_taking.asked(channel, view)
            case Channel.COMPUTE:
                request = min(first.waiting.values(), key=lambda r: r.due_s)
                return turn_taking.step(view, first, prefill_chunks(view, [request]), 0.0)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        return must_end(step, event)


def _page_out(view: InstanceView) -> Plan:
    return turn_taking.page_out(view, (r for m in view.live_models.values() for r in m.decoding.values()))


class AegaeonDecode:
    """Weighted round robin over the models that have requests."""

    name = "aegaeon"

    def __init__(self) -> None:
        self._round: list[ModelId] = []
        self._quotas: dict[ModelId, float] = {}
        self._rescue = rescue.Rescue()
        self._turn_ends_s: float | None = None
        """None until the model whose turn it is has stepped."""
        self._drawn: dict[RequestId, int] = {}
        """Number of tokens each of its requests had when the turn's first step became possible. A turn
        without a new token goes on: rebuilding KV that was discarded may take the whole turn."""

    def on_event(self, event: Event, view: InstanceView) -> None:
        live = [m for m in view.live_models if view.live_models[m].n_live]
        over = self._turn_ends_s is not None and view.now_s >= self._turn_ends_s
        if self._round and (self._round[0] not in live or (over and self._has_drawn(view))):
            self._round.pop(0)
            self._turn_ends_s = None
        self._round = [model for model in self._round if model in live]
        if not self._round:
            self._round = live
            self._quotas = quotas(view, [view.models[m] for m in live])
        if self._round and self._turn_ends_s is None and isinstance(event, StepDone | CopyDone | Arrived):
            first = view.models[self._round[0]]
            if first.facts.id in view.resident_models and not first.away:
                self._turn_ends_s = view.now_s + self._quotas.get(first.facts.id, QMAX_S)
                self._drawn = {
                    r.request.id: r.n_drawn for file in (first.waiting, first.decoding) for r in file.values()
                }

    def _has_drawn(self, view: InstanceView) -> bool:
        """True if the turn has brought its model a token, or a request that waited for one no longer does."""
        waited = ((view.requests.get(request), n) for request, n in self._drawn.items())
        return any(request is None or request.is_paused or request.n_drawn > n for request, n in waited)

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        if not self._round:
            return turn_taking.asked(channel, view)
        first = view.models[self._round[0]]
        return turn_taking.take_turn(
            channel, view, first, self._rescue, lambda channel: self._plan(channel, view, first)
        )

    def _plan(self, channel: Channel, view: InstanceView, first: ModelView) -> Plan:
        match channel:
            case Channel.FETCH:
                return turn_taking.fetch(view, first)
            case Channel.COPY_IN:
                plan = turn_taking.bring_in(view, first) or turn_taking.page_in(view, first)
                if plan is None and len(self._round) > 1:
                    plan = turn_taking.bring_ahead(view, view.models[self._round[1]], first)
                return plan or turn_taking.asked(channel, view)
            case Channel.COPY_OUT:
                others = (m for m in view.live_models.values() if m is not first)
                return turn_taking.page_out(view, (r for m in others for r in m.decoding.values()))
            case Channel.COMPUTE:
                chunks = prefill_chunks(view, first.waiting.values()) + decode_chunks(first)
                left_s = max(0.0, (self._turn_ends_s or view.now_s) - view.now_s)
                return turn_taking.step(view, first, chunks, left_s)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        new = isinstance(event, CopyDone | Arrived) and bool(view.models[step.model].waiting)
        return new or must_end(step, event)


def quotas(view: InstanceView, models: Sequence[ModelView]) -> dict[ModelId, float]:
    """Seconds of decoding for each model of a round."""
    if len(models) < 2:
        return {model.facts.id: QMAX_S for model in models}
    n = {
        m.facts.id: min(r.request.service.tpot_s for f in (m.waiting, m.decoding, m.away) for r in f.values())
        / view.cost.step_s(m.facts, decode_work(m))
        for m in models
    }
    c = sum(view.cost.copy_s(Channel.COPY_IN, m.facts.n_bytes) for m in models)
    inverse = sum(1 / value for value in n.values())
    alpha = max(c / (min(n.values()) * QMAX_S) + inverse, ALPHA_MIN)
    if alpha <= inverse:
        return dict.fromkeys(n, QMAX_S)
    return {model: min(QMAX_S, c / (value * (alpha - inverse))) for model, value in n.items()}


class AegaeonPool:
    """Assigns roles, forms groups and hands requests over. The prefill instances come first."""

    name = "aegaeon"

    def __init__(self, prefill: Sequence[AegaeonPrefill], n_instances: int) -> None:
        self._prefill = prefill
        self._n_instances = n_instances
        self._decode_homes: dict[ModelId, tuple[int, int]] = {}

    def place(self, request: Request, pool: PoolView) -> Place:
        for index, policy in enumerate(self._prefill):
            if policy.open_group(request.model):
                return Place(index)
        return Place(
            min(range(len(self._prefill)), key=lambda i: _queued_s(self._prefill[i], pool.instances[i]))
        )

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        """Hand over prefilled requests once the host has their KV. If the host has no room they go without
        it, and it is rebuilt."""
        if index >= len(self._prefill) or not isinstance(event, CopyDone | StepDone):
            return ()
        view = pool.instances[index]
        idle = view.in_flight(Channel.COPY_OUT) is None
        done = (
            (model.facts.id, request)
            for model in view.live_models.values()
            for request in model.decoding.values()
            if not (request.in_copy or request.in_step)
            and (request.is_clean or (idle and not view.can_page_out(request.request.id)))
        )
        return [Move(request.request.id, index, self._decode_home(model, pool)) for model, request in done]

    def on_left(self, index: int, request: Request) -> None:
        if index >= len(self._prefill):
            home, n_live = self._decode_homes[request.model]
            self._decode_homes[request.model] = (home, n_live - 1)
            if n_live == 1:
                del self._decode_homes[request.model]

    def _decode_home(self, model: ModelId, pool: PoolView) -> int:
        """The instance that already decodes the model, otherwise the decode instance with the fewest
        models."""
        home, n_live = self._decode_homes.get(model, (-1, 0))
        if home < 0:
            counts = dict.fromkeys(range(len(self._prefill), self._n_instances), 0)
            for other, _ in self._decode_homes.values():
                counts[other] += 1
            home = min(counts, key=counts.__getitem__)
        self._decode_homes[model] = (home, n_live + 1)
        return home


def _queued_s(policy: AegaeonPrefill, view: InstanceView) -> float:
    """Estimated seconds that the waiting groups take: one switch each, and their prompts."""
    seconds = 0.0
    for group in policy.groups:
        model = view.models[group.model]
        seconds += view.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
        for request in group.requests:
            n = model.waiting[request].n_tokens
            seconds += view.cost.step_s(
                model.facts, decode_work(model)._replace(prefill_tokens=n, prefill_pairs=n * n // 2)
            )
    return seconds
