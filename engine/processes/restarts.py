"""How soon a process that broke is started again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """`n` processes in a row that live for less than `window_s` seconds are replaced at once, later ones
    after a wait."""

    n: int = 3
    window_s: float = 60.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0

    def wait_s(self, n_short_lives: int) -> float:
        """How long to wait before the next start, after this many short-lived processes in a row."""
        n_waits = n_short_lives - self.n
        if n_waits <= 0:
            return 0.0
        return min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(n_waits - 1, 64))
