"""Calls to a running server: how the general options reach it, and how its errors become ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tokenmux.core.addresses import target_fault
from tokenmux.core.errors import ConfigError, TokenmuxError

if TYPE_CHECKING:
    from tokenmux.client import Client


_UNREACHED = ("failed to connect", "errors resolving", "DNS resolution failed")
"""How gRPC's own messages begin if no server was reached; a server's begin otherwise."""


class _FailedCall(TokenmuxError):
    """A call to the server failed."""


_OTHER_SERVERS = {
    "http1.x": "it speaks HTTP/1: give the address of gRPC (`listen`), not that of `http`",
    "missing selected ALPN": "it speaks HTTP/1: give the address of gRPC (`listen`), not that of `http`",
    "WRONG_VERSION_NUMBER": "it does not speak TLS: leave out --tls and --ca-file",
    "CERTIFICATE_VERIFY_FAILED": "its certificate comes from an authority that is not known here, or names "
    "another host: name the authority's file with --ca-file",
    "Socket closed": "does it speak TLS? Then use --tls, or --ca-file for an authority of your own",
}
"""What to do about a server of another kind, by a part of gRPC's message."""


def _hint(target: str, message: str) -> str:
    """What to look at if a call did not reach a server at `target`."""
    for part, remedy in _OTHER_SERVERS.items():
        if part in message:
            return f"; something answers at {target}: {remedy}"
    return f"; is a server running on {target}?"


@dataclass(frozen=True, slots=True)
class Remote:
    """The server that a command talks to, from the options before the command."""

    target: str
    api_key: str | None
    tls: bool
    ca_file: Path | None
    insecure: bool


@contextmanager
def connected(ctx: typer.Context) -> "Iterator[Client]":
    """A client of the server in `ctx.obj`, closed at the end.

    Raises ConfigError for options and input that are wrong, another TokenmuxError if a call fails.
    """
    from tokenmux.client import CallFailed, Client, WrongArgument

    remote: Remote = ctx.obj
    fault = target_fault(remote.target)
    if fault is not None:
        raise ConfigError(fault)
    try:
        client = Client(
            remote.target,
            api_key=remote.api_key or None,
            tls=remote.tls,
            ca_file=remote.ca_file,
            insecure=remote.insecure,
        )
    except WrongArgument as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{remote.ca_file}: cannot be read: {error.strerror}") from error
    try:
        with client:
            yield client
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"an argument or the input is not valid UTF-8 text: {error.reason}") from error
    except WrongArgument as error:
        raise ConfigError(str(error)) from error
    except CallFailed as error:
        unreached = error.code.name == "UNAVAILABLE" and error.message.startswith(_UNREACHED)
        hint = _hint(remote.target, error.message) if unreached else ""
        raise _FailedCall(f"{error}{hint}") from error
