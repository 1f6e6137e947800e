"""Limits of the front, as one value."""

from dataclasses import dataclass, field

from tokenmux.processes.restarts import RestartLimits
from tokenmux.server.nodes.supervisor import Patience


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on requests, on clients that do not read, and on the patience with nodes."""

    max_requests: int = 256
    """Requests accepted and not yet ended. Further ones are refused, except for tenants that hold less
    than their share (`tokenmux.server.front.tenants`)."""
    max_choices: int = 16
    """Choices of one call, each of which is a request."""
    buffer_tokens: int = 512
    """Tokens that a client may leave unread before its request is paused
    (`tokenmux.server.front.slow_readers`)."""
    unread_s: float = 60.0
    """How long a request may stay paused before it is ended."""
    deaths_per_request: int = 2
    """After this many deaths of nodes that had it and made no progress with it, a request is tried alone
    (`tokenmux.server.nodes.suspects`). It ends if one more node breaks over it."""
    trial_s: float = 40.0
    """A trial that takes longer ends without a verdict, and later ones may take twice as long. Longer than
    the time in which a hung node is noticed."""
    restarts: RestartLimits = field(default_factory=RestartLimits)
    patience: Patience = field(default_factory=Patience)
    outage_s: float = 30.0
    """How long requests wait for a node, or for a device that serves. After that they are refused until
    there is one."""
    still_s: float = 30.0
    """Health says so if requests wait and nothing has moved for this long
    (`tokenmux.server.front.standstill`)."""
