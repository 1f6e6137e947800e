"""API keys: which callers may use which services.

Services are separate in the API so that the name of the method decides. Inference keys open `Inference`;
admin keys open everything. Health checks are open to all, so that load balancers need no key. Without any
configured keys everything is open, which `tokenmux.server.config` allows only on loopback addresses.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import grpc

from tokenmux.server.grpc_api.grpc_types import Context, Continuation, Handler, Interceptor


class Scope(Enum):
    """What a key gives access to."""

    INFERENCE = "inference"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Key:
    """A named key. Only the digest of the secret is kept."""

    name: str
    scope: Scope
    digest: bytes

    @classmethod
    def of(cls, name: str, scope: Scope, secret: str) -> "Key":
        return cls(name, scope, hashlib.sha256(secret.encode()).digest())


METADATA_KEY = "authorization"
OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})
INFERENCE_SERVICES = frozenset({"tokenmux.v1.Inference"})

CallMetadata = Iterable[tuple[str, str | bytes]]


class Access:
    """Decides calls by their metadata, `authorization: Bearer SECRET`."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    @property
    def is_open(self) -> bool:
        """True if there are no keys, so that everyone may do everything."""
        return not self._keys

    def caller(self, metadata: CallMetadata | None) -> Key | None:
        """The key that a call carries; None if it has none or an unknown one."""
        for name, value in metadata or ():
            if name == METADATA_KEY and isinstance(value, str):
                scheme, _, secret = value.partition(" ")
                if scheme.lower() == "bearer":
                    return self._find(hashlib.sha256(secret.strip().encode()).digest())
        return None

    def refusal(self, method: str, metadata: CallMetadata | None) -> tuple[grpc.StatusCode, str] | None:
        """Why a call to `method` ("/package.Service/Method") is refused; None if it is allowed."""
        service = method.strip("/").partition("/")[0]
        if self.is_open or service in OPEN_SERVICES:
            return None
        key = self.caller(metadata)
        if key is None:
            return (
                grpc.StatusCode.UNAUTHENTICATED,
                (
                    f"this server needs an API key: send the metadata `{METADATA_KEY}: Bearer KEY` with "
                    "a valid one"
                ),
            )
        if key.scope is Scope.ADMIN or service in INFERENCE_SERVICES:
            return None
        return (
            grpc.StatusCode.PERMISSION_DENIED,
            f"the key {key.name!r} is for inference; {service} needs an admin key",
        )

    def _find(self, digest: bytes) -> Key | None:
        found = None
        for key in self._keys:  # compare with all of them, so that the time taken reveals nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


class AccessInterceptor(Interceptor):
    """Refuses calls before their request is read."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        refusal = self._access.refusal(handler_call_details.method, handler_call_details.invocation_metadata)
        handler = await continuation(handler_call_details)
        if refusal is None or handler is None:
            return handler
        return refuse(handler, *refusal)


def refuse(handler: Handler, code: grpc.StatusCode, message: str) -> Handler:
    """A handler for the same kind of call that always ends it with this status."""

    async def end(_: object, context: Context) -> None:
        await context.abort(code, message)

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return kind(end)
