"""Where the server listens: takes the address before anything slow begins, and checks certificates.

gRPC reports every failure to listen alike; here the reasons are told apart.
"""

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tokenmux.core.errors import ConfigError


def cannot_listen(
    address: str,
    why: str = "the port is in use, or the address is not of this machine",
    key: str = "listen",
) -> ConfigError:
    return ConfigError(
        f"cannot listen on {address}: {why}. "
        f"Stop the other server, or choose another address with `{key}` (--{key})."
    )


class Reservation:
    """An address that no other server can take, until `give_up` (just before the server takes it) or the end
    of the context."""

    def __init__(self, address: str, key: str = "listen") -> None:
        """`key` of the configuration chooses the address. Raises ConfigError if it is not available."""
        host, _, port = address.rpartition(":")
        self._sockets = ExitStack()
        self._listening: list[socket.socket] = []
        try:
            found = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, place in found[: 1 if int(port) == 0 else None]:
                taken = self._sockets.enter_context(socket.socket(family, kind, protocol))
                # Like gRPC: connections of a server that has just ended do not matter, one that listens does.
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                taken.bind(place)
                taken.listen(1)
                self._listening.append(taken)
        except OSError as error:
            self._sockets.close()
            why = "the port is in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
            raise cannot_listen(address, why, key) from error

    def give_up(self) -> None:
        self._sockets.close()

    def handed_over(self) -> list[socket.socket]:
        """The sockets that listen, for their new owner to close."""
        self._sockets.pop_all()
        return self._listening


@contextmanager
def reserved(address: str, key: str = "listen") -> Iterator[Reservation]:
    """Hold an address during something slow. Raises ConfigError if it is not available."""
    reservation = Reservation(address, key)
    try:
        yield reservation
    finally:
        reservation.give_up()


def check_pair(certificate: Path, private_key: Path) -> None:
    """Raise ConfigError, with the file and the remedy, unless both are PEM files and belong together."""
    if b"-----BEGIN CERTIFICATE-----" not in certificate.read_bytes():
        raise ConfigError(
            f"tls.certificate: {certificate} holds no certificate in PEM format (BEGIN CERTIFICATE)"
        )
    key = private_key.read_bytes()
    if b"PRIVATE KEY-----" not in key:
        raise ConfigError(
            f"tls.private_key: {private_key} holds no private key in PEM format (BEGIN PRIVATE KEY)"
        )
    if b"ENCRYPTED" in key:
        raise ConfigError(
            f"tls.private_key: {private_key} is encrypted, and the server cannot ask for its "
            "passphrase: decrypt it"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"tls: the private key {private_key} does not belong to the certificate {certificate}"
            ) from error
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise ConfigError(
            f"tls: {certificate} and {private_key} cannot be used: one of them is damaged ({reason})"
        ) from error


def tls_context(certificate: Path, private_key: Path) -> ssl.SSLContext:
    """For servers that speak TLS by Python's own library. The files are a pair (`check_pair`)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, private_key)
    return context
