"""Baseline: autoscaling between requests, as in ServerlessLLM (OSDI 2024). A model keeps a device from its
first request until it has none left.

Requests of the model that arrive meanwhile join its batch; other models wait for a free instance, first come
first served. The pool has a single waiting line: an instance that falls idle takes the oldest waiting model,
on whichever instance it waits.
"""

from collections.abc import Sequence

from tokenmux.core.event import Arrived, Event
from tokenmux.core.facts import ModelId
from tokenmux.core.plan import IDLE, Channel, Chunk, Plan, Step
from tokenmux.core.request import Request, RequestId
from tokenmux.scheduler.policy import rescue
from tokenmux.scheduler.policy.baselines import turn_taking
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView
from tokenmux.scheduler.policy.pool.pool_policy import Move, Place, PoolView, Refuse
from tokenmux.scheduler.policy.steps import mixed_chunks, must_end, shortest_tpot_s

_BURST_TPOTS = 4.0


class RequestLevelPolicy:
    """Serve one model at a time, until it has no requests."""

    name = "request-level"

    def __init__(self) -> None:
        self._current: ModelId | None = None
        self._rescue = rescue.Rescue()

    def on_event(self, event: Event, view: InstanceView) -> None:
        current = view.live_models.get(self._current) if self._current else None
        if current is None or not current.n_live:
            waiting = [model for model in view.live_models.values() if model.n_live]
            oldest = min(waiting, key=turn_taking.oldest_arrival_s, default=None)
            self._current = oldest.facts.id if oldest else None

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        if self._current is None:
            return turn_taking.asked(channel, view)
        model = view.models[self._current]
        return turn_taking.take_turn(
            channel, view, model, self._rescue, lambda channel: _plan(channel, view, model)
        )

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        return must_end(step, event) or (isinstance(event, Arrived) and event.request.model == step.model)


def _plan(channel: Channel, view: InstanceView, model: ModelView) -> Plan:
    match channel:
        case Channel.FETCH:
            return turn_taking.fetch(view, model)
        case Channel.COPY_IN:
            return (
                turn_taking.bring_in(view, model)
                or turn_taking.page_in(view, model)
                or turn_taking.asked(channel, view)
            )
        case Channel.COPY_OUT:
            full = not view.can_run(_chunks(view, model))
            return turn_taking.page_out(view, model.decoding.values()) if full else IDLE
        case Channel.COMPUTE:
            chunks = _chunks(view, model)
            burst_s = _BURST_TPOTS * shortest_tpot_s(view, model) if model.decoding else 0.0
            return turn_taking.step(view, model, chunks, burst_s)


def _chunks(view: InstanceView, model: ModelView) -> list[Chunk]:
    return mixed_chunks(view, model, model.waiting.values())


class OneModelPerInstance:
    """The pool's side: a waiting line of models. `dedicated` is the case in which no model ever leaves."""

    def __init__(self, name: str, forever: bool) -> None:
        self.name = name
        self._forever = forever
        self._holders: dict[int, list[ModelId]] = {}
        self._homes: dict[ModelId, int] = {}
        self._n_live: dict[ModelId, int] = {}
        self._where: dict[RequestId, int] = {}
        """The instance of every live request, or the one that it moves to."""

    @property
    def n_remembered(self) -> int:
        """Models that wait or are served, and requests: nothing once all requests are over."""
        return sum(map(len, self._holders.values())) + len(self._homes) + len(self._where)

    def place(self, request: Request, pool: PoolView) -> Place | Refuse:
        index = self._homes.get(request.model)
        if index is None or not pool.takes(index, request):
            indices = [i for i in range(len(pool.instances)) if pool.takes(i, request)]
            index = min(
                indices,
                key=lambda i: (len(self._holders.get(i, ())), not _is_resident(pool, i, request.model)),
            )
            if self._forever and self._holders.get(index):
                return Refuse(f"{request.model} has no device of its own; the pool needs one more")
            self._settle(request.model, index)
        self._n_live[request.model] = self._n_live.get(request.model, 0) + 1
        self._where[request.id] = index
        return Place(index)

    def on_event(self, index: int, event: Event, pool: PoolView) -> Sequence[Move]:
        if self._forever or self._holders.get(index) or index not in pool.open:
            return ()
        lines = []
        for source, model_id in self._waiting(pool):
            model = pool.instances[source].live_models[model_id]
            requests = [
                r.request for file in (model.waiting, model.decoding, model.away) for r in file.values()
            ]
            if all(pool.takes(index, request) for request in requests):
                lines.append((turn_taking.oldest_arrival_s(model), source, model_id, requests))
        if not lines:
            return ()
        _, source, model_id, requests = min(lines, key=lambda line: line[:3])
        self._settle(model_id, index)
        self._where.update((request.id, index) for request in requests)
        return [Move(request.id, source, index) for request in requests]

    def on_left(self, index: int, request: Request) -> None:
        model = request.model
        if self._where.get(request.id) != index:
            return
        del self._where[request.id]
        self._n_live[model] -= 1
        if not self._n_live[model] and not self._forever:
            del self._n_live[model]
            self._holders[self._homes.pop(model)].remove(model)

    def _settle(self, model: ModelId, index: int) -> None:
        """Make this instance the home of the model."""
        if model in self._homes:
            self._holders[self._homes[model]].remove(model)
        self._homes[model] = index
        self._holders.setdefault(index, []).append(model)

    def _waiting(self, pool: PoolView) -> list[tuple[int, ModelId]]:
        """Models that wait on an instance behind the model that is served there."""
        return [
            (i, model)
            for i, holders in self._holders.items()
            for model in holders[1:]
            if model in pool.instances[i].live_models
        ]


def _is_resident(pool: PoolView, index: int, model: ModelId) -> bool:
    return model in pool.instances[index].resident_models
