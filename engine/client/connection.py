"""How to reach a server: address, TLS, API key. The same for the blocking and the asyncio client."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from tokenmux.client.errors import WrongArgument

DEFAULT_ADDRESS = "127.0.0.1:50051"

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # the server bounds its answers by the request
    ("grpc.initial_reconnect_backoff_ms", 200),
    (
        "grpc.max_reconnect_backoff_ms",
        5_000,
    ),  # by default minutes
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a server. `api_key` is sent with every call: over TLS, to this machine, or if `insecure`
    allows others to read it.

    `ca_file` is a PEM file of the authority to trust. Raises WrongArgument for a key that would be sent in
    the clear, and for one that a header cannot carry.
    """

    target: str = DEFAULT_ADDRESS
    api_key: str | None = None
    tls: bool = False
    ca_file: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.api_key is None:
            return
        if not (
            self.api_key.isascii()
            and self.api_key.isprintable()
            and self.api_key.strip() == self.api_key != ""
        ):
            raise WrongArgument(
                "the API key must be printable ASCII with no space or newline at its ends: strip() "
                "what was read from a file"
            )
        if not (self.tls or self.ca_file is not None or self.insecure or is_local(self.target)):
            raise WrongArgument(
                f"the API key would go to {self.target} in the clear: connect with TLS (tls, or "
                "ca_file for an authority of your own), "
                "or set insecure if no one else can read that network"
            )

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    @property
    def options(self) -> Sequence[tuple[str, int]]:
        """Channel options: a server on this machine is never reached through a proxy, whatever the
        environment says."""
        return (*_OPTIONS, ("grpc.enable_http_proxy", 0)) if is_local(self.target) else _OPTIONS

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials, or None without TLS. Raises OSError if the CA file cannot be read, and WrongArgument
        if it has no certificate."""
        if self.ca_file is not None:
            authority = self.ca_file.read_bytes()
            if b"-----BEGIN CERTIFICATE-----" not in authority:
                raise WrongArgument(f"ca_file {self.ca_file} has no certificate: give a PEM file")
            return grpc.ssl_channel_credentials(authority)
        return grpc.ssl_channel_credentials() if self.tls else None


def is_local(target: str) -> bool:
    """True if what is sent to this gRPC target stays on this machine: a Unix socket, or loopback addresses
    only."""
    scheme, separator, rest = target.partition(":")
    if separator and scheme in ("unix", "unix-abstract"):
        return True
    if separator and scheme in ("ipv4", "ipv6", "dns"):
        target = rest.rpartition("/")[2]
    return all(_is_loopback(address) for address in target.split(","))


def _is_loopback(address: str) -> bool:
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
