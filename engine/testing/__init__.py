"""Doubles and builders for tests of a policy, a device or a client of one's own. The project's own tests use
them.

A world in which a scheduler can be tried takes a few lines, and no process, thread or clock:

>>> from tokenmux.simulator.simulator import Simulator
>>> from tokenmux.testing import make_arrival, make_device, make_instance, make_model
>>> small, large = make_model("small", 2_000), make_model("large", 6_000)
>>> instance = make_instance(make_device(arena_bytes=10_000))
>>> simulator = Simulator([instance], instance.cost, models={m.id: m for m in (small, large)})
>>> simulator.run([make_arrival("first", small, n_output=4), make_arrival("second", large, n_output=4)])
>>> instance.metrics.models["large"].n_swaps
1

`virtual_node` has a node on virtual time, `driven_node` one with real weights in the caller's thread,
`started_operations` what a device is given, `scripted_node` a node for a front that has none.
"""

from tokenmux.testing.builders import (
    SMALL_KV,
    make_arrival,
    make_device,
    make_host,
    make_instance,
    make_model,
    make_request,
)
from tokenmux.testing.scripted_policy import ScriptedPolicy

__all__ = [
    "SMALL_KV",
    "ScriptedPolicy",
    "make_arrival",
    "make_device",
    "make_host",
    "make_instance",
    "make_model",
    "make_request",
]
