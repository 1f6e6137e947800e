"""A node in the caller's thread, with one executor in the same process, on a device with real weights.

`tokenmux.testing.driven_node` with the setup that benchmarks need.
"""

import os
import sys

from tokenmux.core.facts import DeviceFacts, HostFacts
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.processes.executor_environment import executor_environment
from tokenmux.testing import driven_node


def run_as_an_executor_would(module: str) -> None:
    """Run this program, `python -m module`, again with the environment of an executor's process, unless it
    has that: some of it is read by libraries when they are loaded."""
    theirs = executor_environment(os.environ)
    if any(os.environ.get(name) != value for name, value in theirs.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], theirs)


class DrivenNode(driven_node.DrivenNode):
    """A driven node with one device."""

    def __init__(self, facts: DeviceFacts, host: HostFacts, kind: DeviceKind = "cpu") -> None:
        super().__init__(NodeSetup((DeviceSetup(facts, kind),), host, facts.host_kv_bytes))
