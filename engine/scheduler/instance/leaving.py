"""Requests that leave with their KV: they go on here until the host has it, and then move to another
instance.

    Withdrawn(with_kv) ──▶ served as before ──▶ paged out ──▶ leaves, once no operation uses it
                                           └──▶ nothing to page out, or no room for it: leaves at once

The copy counts the tokens computed before it began. Those drawn meanwhile are rebuilt by one step of the next
instance.
"""

from collections.abc import Callable, Iterator

from tokenmux.core.plan import Channel, PageOut, Plan
from tokenmux.core.request import RequestId
from tokenmux.scheduler.instance import requests
from tokenmux.scheduler.instance.live_state import LiveState
from tokenmux.scheduler.instance.request_state import RequestState
from tokenmux.scheduler.policy.instance_policy import InstanceView

Planner = Callable[[Channel, InstanceView], Plan]
"""Says what a free channel does next."""


def withdraw(state: LiveState, request_id: RequestId, with_kv: bool) -> None:
    """Let the request leave, at once or with its KV."""
    request = state.requests.get(request_id)
    if request is None:
        return
    if with_kv and request.to_end is None:
        state.leaving[request_id] = request
    else:
        requests.end(state, request, None)


def look(state: LiveState) -> None:
    """Let those leave for which there is nothing to page out, or no room."""
    for request in list(state.leaving.values()):
        if not request.in_copy and not _may_be_paged_out(state, request):
            requests.end(state, request, None)


def plan(state: LiveState, others: Planner, channel: Channel, view: InstanceView) -> Plan:
    """Page out KV of the request that is due first, and else do what `others` plan."""
    if channel is Channel.COPY_OUT:
        look(state)
        first = min(_waiting(state), key=lambda request: request.due_s, default=None)
        if first is not None:
            return Plan(PageOut((first.id,)))
    return others(channel, view)


def _waiting(state: LiveState) -> Iterator[RequestState]:
    if not state.ledger.arena.frozen:
        yield from (request for request in state.leaving.values() if not request.in_copy)


def _may_be_paged_out(state: LiveState, request: RequestState) -> bool:
    """True if the device has KV of it that the host lacks and has room for, now or when nothing is being
    moved."""
    if request.is_clean:
        return False
    return state.ledger.arena.frozen or state.ledger.can_page_out(request.kv)
