"""When a simulation may stop: as soon as the number of late tokens makes it certain that the goal is
missed."""

from collections.abc import Sequence

from tokenmux.core.record import RequestRecord
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.instance.request_state import RequestState
from tokenmux.simulator.simulator import Simulator
from tokenmux.workload.trace import Arrival

N_LOOKS = 60
"""Number of checks while requests arrive. A pool that is one device short stops a few sixtieths later than it
could."""


class Verdict:
    """Tells whether the share of tokens on time can still reach `goal`. Counts late tokens; ask it from
    time to time."""

    def __init__(self, goal: float, arrivals: Sequence[Arrival], records: Sequence[RequestRecord]) -> None:
        """`records` grows as requests end."""
        self._goal = goal
        self._n_output = {arrival.request.id: arrival.n_output for arrival in arrivals}
        self._n_tokens = sum(self._n_output.values())
        self._records = records
        self._n_seen = 0
        self._n_late_ended = 0

    def is_missed(self, simulator: Simulator) -> bool:
        new = self._records[self._n_seen :]
        self._n_seen += len(new)
        self._n_late_ended += sum(self._n_output[r.request.id] - r.n_on_time for r in new)
        n_late = self._n_late_ended + sum(self._n_output[request.id] for request, _ in simulator.refused)
        n_late += sum(self._n_late(instance, simulator.now_s) for instance in simulator.instances)
        return (self._n_tokens - n_late) / self._n_tokens < self._goal

    def _n_late(self, instance: Instance, now_s: float) -> int:
        """Late tokens of the requests that are live on the instance: those that came late, and those that
        are overdue."""
        return sum(
            state.n_drawn - state.n_on_time + self._n_overdue(state, now_s)
            for state in instance.requests.values()
        )

    def _n_overdue(self, state: RequestState, now_s: float) -> int:
        """Overdue tokens of a request; 0 while it is in a step in flight, whose tokens are recorded when
        it ends."""
        if state.in_step or now_s <= state.deadline_s:
            return 0
        n_left = self._n_output[state.id] - state.n_drawn
        return min(n_left, int((now_s - state.deadline_s) / state.request.service.tpot_s))
