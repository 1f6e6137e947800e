"""How to reach a server: address, TLS, API key. The same for the sync and the asyncio client."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

DEFAULT_TARGET = "127.0.0.1:50051"

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # the server bounds what it sends by what was asked for
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """`api_key` is sent with every call, over TLS or to this machine only. `ca_file`: a PEM file of the authority to trust."""

    target: str = DEFAULT_TARGET
    api_key: str | None = None
    tls: bool = False
    ca_file: Path | None = None

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    @property
    def options(self) -> Sequence[tuple[str, int]]:
        return _OPTIONS

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None: no TLS. Raises OSError when the CA file cannot be read."""
        if self.ca_file is not None:
            return grpc.ssl_channel_credentials(self.ca_file.read_bytes())
        return grpc.ssl_channel_credentials() if self.tls else None
