"""The real clock. CLOCK_MONOTONIC is one clock for all processes of a host, so times may be sent to a
node."""

import time


class MonotonicClock:
    def now_s(self) -> float:
        return time.monotonic()
