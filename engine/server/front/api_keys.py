"""API keys: which exist, what each opens, and which tenant its holder is.

A dialect passes the `authorization` text of a call, an HTTP header or gRPC metadata, and the scope that the
call needs. Without any keys everything is open, which `tokenmux.server.config` allows only on loopback
addresses.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from tokenmux.core.errors import ErrorCode, Forbidden, Unauthenticated

AUTHORIZATION = "authorization"
"""The name of the header, or metadata, that carries a key."""


class Scope(Enum):
    """What a key gives access to."""

    INFERENCE = "inference"
    METRICS = "metrics"
    """Opens the figures for Prometheus and nothing else."""
    ADMIN = "admin"
    """Opens everything."""


@dataclass(frozen=True, slots=True)
class Key:
    """A named key. Only the digest of the secret is kept."""

    name: str
    scope: Scope
    digest: bytes

    @classmethod
    def of(cls, name: str, scope: Scope, secret: str) -> "Key":
        return cls(name, scope, hashlib.sha256(secret.encode()).digest())


class ApiKeys:
    """All keys of a server."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = tuple(keys)
        self.refused: Counter[ErrorCode] = Counter()
        """Calls that were refused for their key."""

    @property
    def names(self) -> list[str]:
        """The names of all keys."""
        return [key.name for key in self._keys]

    def caller(self, authorization: str | None) -> Key | None:
        """The key in `authorization` ("Bearer SECRET"); None if there is none, or it is unknown."""
        if authorization is None:
            return None
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._find(hashlib.sha256(secret.strip().encode()).digest())

    def check(self, authorization: str | None, needed: Scope, what: str) -> None:
        """Raise Unauthenticated or Forbidden if this caller may not use `what`, which needs a key of scope
        `needed`."""
        if not self._keys:
            return
        key = self.caller(authorization)
        if key is None:
            self.refused[ErrorCode.UNAUTHENTICATED] += 1
            raise Unauthenticated(
                f"this server needs an API key: send `{AUTHORIZATION}: Bearer KEY` with a valid one"
            )
        if key.scope not in (Scope.ADMIN, needed):
            self.refused[ErrorCode.FORBIDDEN] += 1
            kind = "an admin key" if needed is Scope.ADMIN else f"one for {needed.value}, or an admin key"
            raise Forbidden(f"the key {key.name!r} is for {key.scope.value}; {what} needs {kind}")

    def _find(self, digest: bytes) -> Key | None:
        found = None
        for key in self._keys:  # compare with all of them, so that the time taken reveals nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def tenant_of(caller: Key | None, said: str) -> str:
    """The tenant of a request: the name of its caller's key, or what the request says if it carries none."""
    return said if caller is None else caller.name


def cancelling_tenant(caller: Key | None, said: str) -> str | None:
    """The tenant whose requests a caller may cancel: its own, or for an administrator (anyone, if there
    are no keys) the one that it says, and otherwise all (None)."""
    return (said or None) if caller is None or caller.scope is Scope.ADMIN else caller.name
