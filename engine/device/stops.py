"""Which of the launches in flight were asked to stop."""

from threading import Event, Lock


class Stops:
    """An event for each launch in flight, set once it is asked to stop. Callable from any thread."""

    def __init__(self) -> None:
        self._events: dict[int, Event] = {}
        self._lock = Lock()

    def begin(self, operation: int) -> Event:
        """A launch begins."""
        event = Event()
        with self._lock:
            self._events[operation] = event
        return event

    def end(self, operation: int) -> None:
        """The launch has ended."""
        with self._lock:
            del self._events[operation]

    def ask(self, operation: int) -> None:
        """Ask a launch to stop. Does nothing if it has ended."""
        with self._lock:
            event = self._events.get(operation)
        if event is not None:
            event.set()

    def ask_all(self) -> None:
        with self._lock:
            events = list(self._events.values())
        for event in events:
            event.set()
