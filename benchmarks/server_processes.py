"""Processor time of a running server, by what its processes are."""

from collections import defaultdict
from collections.abc import Mapping

import psutil

ROLES = {
    "tokenmux.cli": "front",
    "tokenmux.server.children": "text",
    "tokenmux.node": "node",
    "tokenmux.executor": "executor",
}
"""What a process of a server is, by what its command line names."""


def find(role: str) -> list[psutil.Process]:
    """The processes of this role below this one, oldest first."""
    found = [p for p in psutil.Process().children(recursive=True) if role_of(p) == role]
    return sorted(found, key=lambda process: process.create_time())


def role_of(process: psutil.Process) -> str:
    """ "other" if it is none of a server's, or has ended."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return "other"
    return next((role for name, role in ROLES.items() if name in line), "other")


def processor_s() -> Mapping[str, float]:
    """Seconds of processor time, by role, of all processes below this one."""
    taken: defaultdict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        taken[role_of(process)] += times.user + times.system
    return taken
