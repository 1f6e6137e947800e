"""One direction of a socket on virtual time.

Messages arrive in order, each after a time of its own. Those on their way are lost with the process that sent
or awaits them.
"""

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Link(Generic[Message]):
    """Carries messages to `deliver`; see the module."""

    def __init__(
        self, loop: AbstractEventLoop, rng: Random, longest_s: float, deliver: Callable[[Message], None]
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._longest_s = longest_s
        self._deliver = deliver
        self._under_way: deque[Message] = deque()
        self._last_s = 0.0
        self._is_cut = False
        self.newest: Message | None = None

    def send(self, message: Message) -> None:
        if self._is_cut:
            return
        self.newest = message
        delay_s = self._longest_s * self._rng.random() ** 3
        self._last_s = max(self._last_s + 1e-7, self._loop.time() + delay_s)
        self._under_way.append(message)
        self._loop.call_at(self._last_s, self._arrive)

    @property
    def is_empty(self) -> bool:
        """True if nothing is under way."""
        return not self._under_way

    def cut(self) -> None:
        """Lose what is under way, and carry nothing from now on."""
        self._is_cut = True
        self._under_way.clear()

    def end(self) -> None:
        """The sender is dead: what had left it arrives now, some of what is under way, in order."""
        left = list(self._under_way)
        self.cut()
        for message in left[: self._rng.randint(0, len(left))]:
            self._deliver(message)

    def _arrive(self) -> None:
        if self._under_way:
            self._deliver(self._under_way.popleft())
