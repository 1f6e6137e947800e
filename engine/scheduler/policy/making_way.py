"""When a load in flight gives way to a request that has just arrived.

    begun ─── done so far ───┬─────────── left ──────────▶ loaded          what is done so far is lost
                          arrival: would be late behind it; those waiting for the load have time for both

The new request would wait for the rest of the load and then for its own. It goes first if it would be late
otherwise, less than half of the load is lost, the room that becomes free is enough for it, and the requests
that wait for the load will still be in time, by a margin. With one service level for all this almost never
happens: it is for pools whose users differ.
"""

from tokenmux.core.cost import StepWork
from tokenmux.core.event import Arrived
from tokenmux.core.phases import Residency
from tokenmux.core.plan import Activate, Channel, Fetch
from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView

MARGIN = 4.0
"""The requests that wait for the load must have this many times what the newcomer's load and a restart of
their own take."""


def makes_way(operation: Activate | Fetch, since_s: float, arrived: Arrived, view: InstanceView) -> bool:
    """True to give up the load in flight, begun at `since_s`, for the request that arrived."""
    load, newcomer = view.models[operation.model], view.models[arrived.request.model]
    is_fetch = isinstance(operation, Fetch)
    if newcomer.residency is not (Residency.DISK if is_fetch else Residency.HOST):
        return False
    channel = Channel.FETCH if is_fetch else Channel.COPY_IN
    whole_s = view.cost.copy_s(channel, load.facts.n_bytes)
    left_s = since_s + whole_s - view.now_s
    if 2 * left_s <= whole_s or not (is_fetch or _has_room(view, newcomer, load)):
        return False
    newcomers_s = _load_s(view, newcomer, is_fetch)
    n_prompt = arrived.request.n_prompt
    first_s = view.cost.step_s(newcomer.facts, StepWork(n_prompt, n_prompt * (n_prompt + 1) // 2))
    is_late_behind = newcomer.due_s < view.now_s + left_s + newcomers_s + first_s
    both_s = newcomers_s + _load_s(view, load, is_fetch)
    return is_late_behind and load.due_s > view.now_s + MARGIN * both_s


def _load_s(view: InstanceView, model: ModelView, from_disk: bool) -> float:
    seconds = view.cost.copy_s(Channel.COPY_IN, model.facts.n_bytes)
    if from_disk:
        seconds += view.cost.copy_s(Channel.FETCH, model.facts.n_bytes)
    return seconds


def _has_room(view: InstanceView, newcomer: ModelView, load: ModelView) -> bool:
    return newcomer.facts.n_bytes <= load.facts.n_bytes + view.arena_free_bytes
