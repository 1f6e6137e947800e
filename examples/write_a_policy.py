"""A policy of one's own, tried on two simulated GPUs beside the default one.

    python examples/write_a_policy.py

The model whose request has waited longest has the device until that request is done; requests for the same
model join its batch. It needs nothing but the view that it is given, and returns values: what it plans is
checked by the instance.
"""

from collections.abc import Sequence

from plan_a_pool import small_catalogue, traffic_for

from tokenmux.core.event import Arrived, Event
from tokenmux.core.plan import IDLE, Channel, Plan, Step
from tokenmux.scheduler.policy import rescue
from tokenmux.scheduler.policy.baselines import turn_taking
from tokenmux.scheduler.policy.instance_policy import InstancePolicy, InstanceView, ModelView
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy
from tokenmux.scheduler.policy.steps import decode_chunks, must_end, prefill_chunks
from tokenmux.simulator.scenario import simulate

BURST_S = 0.2


class OldestFirst:
    """First come, first served."""

    name = "oldest-first"

    def __init__(self) -> None:
        self._rescue = rescue.Rescue()

    def on_event(self, event: Event, view: InstanceView) -> None:
        """Nothing to remember: the oldest request is looked up whenever it is asked for."""

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        waiting = [model for model in view.live_models.values() if model.n_live]
        if not waiting:
            return turn_taking.asked(channel, view)  # what operators want loaded
        first = min(waiting, key=turn_taking.oldest_arrival_s)
        # `take_turn` lets the rescue take over while this model cannot step: no memory is too small to make
        # progress.
        own = lambda channel: self._own(channel, view, first)
        return turn_taking.take_turn(channel, view, first, self._rescue, own)

    def _own(self, channel: Channel, view: InstanceView, model: ModelView) -> Plan:
        chunks = prefill_chunks(view, model.waiting.values()) + decode_chunks(model)
        match channel:
            case Channel.FETCH:
                return turn_taking.fetch(view, model)
            case Channel.COPY_IN:
                return turn_taking.bring_in(view, model) or turn_taking.page_in(view, model) or IDLE
            case Channel.COPY_OUT:
                return IDLE if view.can_run(chunks) else turn_taking.page_out(view, model.decoding.values())
            case Channel.COMPUTE:
                return turn_taking.step(view, model, chunks, BURST_S)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        """A burst ends for a request that could join it, and for one that leaves it."""
        return must_end(step, event) or (isinstance(event, Arrived) and event.request.model == step.model)


def oldest_first(n_instances: int) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
    """A policy for each instance, and one that chooses among instances."""
    return [OldestFirst() for _ in range(n_instances)], LeastLoaded()


def main() -> None:
    catalogue = small_catalogue()
    requests = traffic_for(catalogue)
    for name, policy in (("oldest-first", oldest_first), ("slack", "slack")):
        outcome = simulate(catalogue, requests, 2, policy)
        on_time = outcome.summary().tokens_on_time
        print(f"{name}: {on_time:.3f} of all tokens on time, {outcome.n_swaps} swaps")


if __name__ == "__main__":
    main()
