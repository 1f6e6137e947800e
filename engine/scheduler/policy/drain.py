"""Empty the arena before it is replaced: nothing new begins and everything in it leaves, whatever policy the
instance has.

    weights                      ─▶ evicted, pinned ones too
    KV that the host has         ─▶ dropped
    KV that only the device has  ─▶ paged out, the most urgent first;
                                    if the host is full, discarded, the least urgent first

What an operation in flight uses leaves when the operation ends. Nothing is discarded while one is in flight:
its end may make room on the host.
"""

from tokenmux.core.plan import IDLE, AtOnce, Channel, Discard, Drop, Evict, PageOut, Plan
from tokenmux.scheduler.policy import eviction
from tokenmux.scheduler.policy.instance_policy import InstanceView

_USERS = (Channel.COMPUTE, Channel.COPY_IN, Channel.COPY_OUT)
"""Channels whose operations use the arena or the KV in host memory."""


def plan(channel: Channel, view: InstanceView) -> Plan:
    """What this channel does to empty the arena."""
    match channel:
        case Channel.COPY_IN:
            return Plan(at_once=_leaving(view))
        case Channel.COPY_OUT:
            return _write_out(view)
        case Channel.FETCH | Channel.COMPUTE:
            return IDLE


def _leaving(view: InstanceView) -> tuple[AtOnce, ...]:
    """Evict and drop everything of which the host has a copy."""
    running = eviction.stepping(view)
    weights = [m for m in view.resident_models.values() if not m.is_moving and m.facts.id != running]
    clean = [request for request in eviction.kv_holders(view) if request.is_clean]
    return (*(Evict(model.facts.id) for model in weights), *(Drop(r.request.id) for r in clean))


def _write_out(view: InstanceView) -> Plan:
    """Page out KV of which the host has no copy, or discard it if the host is full."""
    dirty = [request for request in eviction.kv_holders(view) if not request.is_clean]
    storable = [request for request in dirty if view.can_page_out(request.request.id)]
    if storable:
        return Plan(PageOut((min(storable, key=eviction.due_s).request.id,)))
    if dirty and all(view.in_flight(channel) is None for channel in _USERS):
        return Plan(at_once=(Discard(max(dirty, key=eviction.due_s).request.id),))
    return IDLE
