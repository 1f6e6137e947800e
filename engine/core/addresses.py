"""Network addresses: where a server listens unless told otherwise, and which hosts are this machine.

The client has copies of both, because it imports nothing of ours; a test holds them equal.
"""

import ipaddress

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Loopback, so that a server without keys cannot be reached from other machines."""


def is_loopback(address: str) -> bool:
    """True if only programs on this machine can reach `address`, written as HOST:PORT."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
