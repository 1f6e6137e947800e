"""Network addresses: where a server listens unless told otherwise, which hosts are this machine, and what is
wrong with an address.

The client has copies of these two, because it imports nothing of ours; a test holds them equal.
"""

import ipaddress

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Loopback, so that a server without keys cannot be reached from other machines."""


_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


def address_fault(address: str) -> str | None:
    """What is wrong with `address`, which should be HOST:PORT; None if nothing is."""
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        host
        and (":" not in host or bracketed)
        and port.isascii()
        and port.isdecimal()
        and len(port) <= 5
        and int(port) <= 65535
    ):
        return None
    return f"{address!r} is not an address: write HOST:PORT, such as {DEFAULT_ADDRESS} or [::1]:50051"


def target_fault(target: str) -> str | None:
    """What is wrong with an address to connect to: HOST:PORT, or another form that gRPC knows, such as
    unix:PATH. None if nothing is."""
    return None if target.startswith(_GRPC_SCHEMES) else address_fault(target)


def is_loopback(address: str) -> bool:
    """True if only programs on this machine can reach `address`, written as HOST:PORT."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
