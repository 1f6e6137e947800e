"""What a pool still has to do before it is settled."""

from collections import deque

from tokenmux.core.event import Event
from tokenmux.core.started import StartedActivation, StartedFetch
from tokenmux.scheduler.pool.members import Members


class Agenda:
    """Decisions first, in the order in which instances changed, then events, then the news of loads."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self.changed: dict[int, None] = {}
        """Instances that have to decide, in order."""
        self.events: deque[tuple[int | None, Event]] = deque()
        """Events that have been caused and not applied yet, with the index of their instance; None: wherever
        the request is."""
        self.loaded: deque[tuple[int, StartedActivation | StartedFetch]] = deque()
        """Loads that have ended and of which other instances have not been told yet."""

    def mark(self, index: int) -> None:
        """The instance has to decide, unless it has no device."""
        if index not in self._members.held and index not in self._members.removed:
            self.changed[index] = None

    def mark_sharers(self, index: int) -> None:
        """Those that share the instance's host cache have to decide."""
        for sharer in self._members.sharers[index]:
            self.mark(sharer)

    def forget(self, index: int) -> None:
        """Drop what was to be done on an instance that is no longer there."""
        self.events = deque(entry for entry in self.events if entry[0] != index)
        self.changed.pop(index, None)

    def take_events(self, n_kept: int) -> list[tuple[int | None, Event]]:
        """Take out the events after the first `n_kept`, in order."""
        taken = [self.events.pop() for _ in range(len(self.events) - n_kept)]
        taken.reverse()
        return taken
