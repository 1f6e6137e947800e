"""Finds the operation that hangs: one in flight that has shown no progress for much longer than it should
take.

The permitted silence of an operation is `STALL_FACTOR` times the longer of what the cost model expects of it
(of a repeated step, of one iteration) and the longest that any operation of its channel has taken so far, and
at least `STALL_FLOOR_S`. A prefill that takes minutes on a processor is expected to, and is left alone.
Fetches wait for disks and networks, for which the device is not responsible: executors watch them
(`tokenmux.device.reader`).
"""

from dataclasses import dataclass

from tokenmux.core.cost import CostModel
from tokenmux.core.plan import Channel
from tokenmux.core.started import Started, StartedActivation, StartedCompaction, StartedFetch, StartedStep

STALL_FACTOR = 20.0
STALL_FLOOR_S = 30.0


@dataclass(slots=True)
class _Watched:
    """An operation in flight, and when it last showed progress."""

    started: Started
    sign_s: float


class Stalls:
    """Is told when operations begin, progress and end, and says which one hangs. Times are in seconds on the
    engine's clock."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost
        self._watched: dict[Channel, _Watched] = {}
        self._longest_s = dict.fromkeys(Channel, 0.0)

    def began(self, started: Started, now_s: float) -> None:
        if started.channel is Channel.FETCH:
            return
        self._watched[started.channel] = _Watched(started, now_s)

    def stepped(self, now_s: float) -> None:
        """The step in flight has completed an iteration."""
        watched = self._watched.get(Channel.COMPUTE)
        if watched is not None:
            self._sign(watched, now_s)

    def advanced(self, operation: int, now_s: float) -> None:
        """A copy has completed some of its chunks."""
        for watched in self._watched.values():
            if watched.started.id == operation:
                self._sign(watched, now_s)

    def ended(self, operation: int, now_s: float) -> None:
        for channel, watched in self._watched.items():
            if watched.started.id == operation:
                self._sign(watched, now_s)
                del self._watched[channel]
                return

    def _sign(self, watched: _Watched, now_s: float) -> None:
        silent_s, watched.sign_s = now_s - watched.sign_s, now_s
        self._longest_s[watched.started.channel] = max(self._longest_s[watched.started.channel], silent_s)

    def find(self, now_s: float) -> str | None:
        """A description of the operation that hangs; None if none does."""
        for channel, watched in self._watched.items():
            silent_s = now_s - watched.sign_s
            if silent_s > STALL_FLOOR_S and silent_s > (patience_s := self._patience_s(watched.started)):
                return (
                    f"the device hangs: {_name_of(watched.started)} on the channel {channel.name.lower()} "
                    f"has shown no progress for {silent_s:.0f} s, and {patience_s:.0f} s are allowed"
                )
        return None

    def _patience_s(self, started: Started) -> float:
        longest_s = max(self._expected_s(started), self._longest_s[started.channel])
        return max(STALL_FLOOR_S, STALL_FACTOR * longest_s)

    def _expected_s(self, started: Started) -> float:
        match started:
            case StartedStep(model=model, work=work):
                return self._cost.step_s(model, work)
            case StartedCompaction(n_bytes=n_bytes):
                return self._cost.move_s(n_bytes)
            case _:
                return self._cost.copy_s(started.channel, started.n_bytes)


def _name_of(started: Started) -> str:
    kind = type(started.operation).__name__.lower()
    if isinstance(started, (StartedStep, StartedActivation, StartedFetch)):
        return f"a {kind} of {started.model.id}"
    return f"a {kind}"
