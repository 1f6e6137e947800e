"""The clock's protocol. Time is always passed in; the real clock is in `tokenmux.processes`."""

from typing import Protocol


class Clock(Protocol):
    """Seconds that never go back. The zero point is arbitrary."""

    def now_s(self) -> float: ...
