"""How much the front takes on, as one value."""

from dataclasses import dataclass, field

from tokenmux.server.workers.supervisor import Patience, RestartLimits


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on requests, on clients that do not read, and on the patience with workers."""

    max_requests: int = 256
    """Accepted and not yet ended. More are refused, except for tenants that hold less than their share
    (`tokenmux.server.front.tenants`)."""
    buffer_tokens: int = 512
    """Tokens that a client may leave unread before its request is paused
    (`tokenmux.server.front.slow_readers`)."""
    unread_s: float = 60.0
    """How long it may stay paused before it is ended."""
    deaths_per_request: int = 2
    """After this many deaths of workers that had it and did not get anywhere with it, a request is tried
    alone (`tokenmux.server.workers.suspects`); it ends if one more worker breaks over it."""
    trial_s: float = 40.0
    """A trial that has not ended by then ends without a verdict, and later ones may take twice as long:
    longer than a hung worker goes unnoticed."""
    restarts: RestartLimits = field(default_factory=RestartLimits)
    patience: Patience = field(default_factory=Patience)
    outage_s: float = 30.0
    """How long requests wait for a worker. After that they are refused until there is one."""
