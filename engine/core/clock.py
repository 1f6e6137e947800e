"""Time is handed in. `Clock` is all that anything of ours knows about it; the real one lives in
`tokenmux.executor`."""

from typing import Protocol


class Clock(Protocol):
    """Seconds that never go back; the zero point means nothing."""

    def now_s(self) -> float: ...
