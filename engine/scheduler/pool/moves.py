"""How live requests get from one instance to another.

A request is asked to leave by a move of the policy (`begin`), or because its instance does not serve
(`evacuate`). Once its instance has let it go it has `left`, and is between two instances until `arrive`.
"""

from collections.abc import Callable
from dataclasses import replace

from tokenmux.core.errors import InternalError
from tokenmux.core.event import Arrived, Withdrawn
from tokenmux.core.request import RequestId
from tokenmux.scheduler.policy.pool.pool_policy import Move, PoolPolicy, PoolView
from tokenmux.scheduler.pool.agenda import Agenda
from tokenmux.scheduler.pool.members import Members
from tokenmux.scheduler.pool.placing import Placing
from tokenmux.scheduler.pool.whereabouts import Transit, Whereabouts


class Moves:
    """Requests that leave their instances; `apply` has one arrive at its next instance."""

    def __init__(
        self,
        policy: PoolPolicy,
        members: Members,
        whereabouts: Whereabouts,
        agenda: Agenda,
        placing: Placing,
        view: PoolView,
        apply: Callable[[int, Arrived], None],
    ) -> None:
        self.n_begun = 0
        """Number of moves that the policy asked for."""
        self._policy = policy
        self._members = members
        self._whereabouts = whereabouts
        self._agenda = agenda
        self._placing = placing
        self._view = view
        self._apply = apply

    def begin(self, move: Move) -> None:
        """The policy moves a request."""
        if self._whereabouts.on.get(move.request) != move.source:
            raise InternalError(f"{self._policy.name} moves {move.request}, which is not on {move.source}")
        if move.request in self._whereabouts.asked:
            # It is leaving a drained instance already, and will be placed.
            request = self._members.instances[move.source].requests[move.request].request
            self._policy.on_left(move.target, request)
            return
        self.n_begun += 1
        self._ask_to_leave(move.source, move.request, move.target)

    def evacuate(self) -> None:
        """Withdraw requests of instances that do not serve, if another one takes them."""
        for index in sorted(self._members.closed | self._members.held):
            for state in self._members.instances[index].requests.values():
                can_leave = state.to_end is None and state.id not in self._whereabouts.asked
                if can_leave and self._placing.is_taken(state.request, but=index):
                    self._ask_to_leave(index, state.id, None)

    def left(self, index: int, arrived: Arrived) -> None:
        """A request has left an instance; how it will arrive at the next one."""
        request = arrived.request
        target = self._whereabouts.leave(request.id)
        if target is not None:
            self._policy.on_left(index, request)
        instance = self._members.instances[index]
        self._whereabouts.between[request.id] = Transit(index, instance, target, arrived)
        self._agenda.events.append((None, arrived))

    def arrive(self, request: RequestId) -> None:
        """Have a request that is between two instances arrive: where the policy moves it, where the policy
        places it, or (if no other instance takes it) where it came from."""
        transit = self._whereabouts.between.pop(request)
        self._bring(transit, self._destination(transit))

    def _ask_to_leave(self, index: int, request: RequestId, target: int | None) -> None:
        self._whereabouts.asked[request] = target
        self._agenda.events.append((index, Withdrawn(self._view.now_s, request, with_kv=True)))

    def _destination(self, transit: Transit) -> int:
        source, target, request = transit.source, transit.target, transit.arrived.request
        if target is None:
            if not self._placing.is_taken(request, but=source):
                return source
            self._policy.on_left(source, request)
        elif self._view.takes(target, request) or not self._placing.is_taken(request):
            return target
        else:
            self._policy.on_left(target, request)
        return self._placing.place_again(source, request)

    def _bring(self, transit: Transit, index: int) -> None:
        """Have a request arrive with the KV that the host has of it.

        Instances that share host KV hand it over as it is. From the host of another instance it is copied,
        unless that was lost. It ends on the grid of cells of its next instance.
        """
        arrived, left, instance = transit.arrived, transit.instance, self._members.instances[index]
        n_kept = arrived.n_kept
        was_lost = self._members.instances[transit.source] is not left
        if was_lost and instance.ledger.host_kv is not left.ledger.host_kv:
            n_kept = 0
        if n_kept < arrived.request.n_prompt:
            n_kept -= n_kept % instance.device.cell_tokens
        self._apply(index, replace(arrived, at_s=self._view.now_s, n_kept=n_kept))
        left.ledger.host_kv.forget(arrived.request.id)
