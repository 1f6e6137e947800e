"""Where the server listens: an address that is taken is noticed at once, and certificates are told apart
from ports."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmux.core.errors import ConfigError
from tokenmux.server.config import PoolConfig, TlsConfig
from tokenmux.server.listening import Reservation, reserved
from tokenmux.server.serve import read_transport

OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_reserved_address_is_nobody_elses_until_it_is_given_up() -> None:
    address = f"127.0.0.1:{free_port()}"
    with reserved(address) as first:
        with pytest.raises(ConfigError, match=rf"cannot listen on {address}: the port is in use.*--listen"):
            Reservation(address)
        first.give_up()
        Reservation(address).give_up()


def test_any_free_port_can_be_reserved_by_many() -> None:
    with reserved("127.0.0.1:0"), reserved("127.0.0.1:0"), reserved("localhost:0"):
        pass


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:50051: .*assign"):
        Reservation("192.0.2.1:50051")


def test_a_second_server_on_a_port_ends_before_it_converts_anything(tmp_path: Path) -> None:
    """The source does not exist: if that were noticed first, something had begun before the port was ours."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        command = [
            sys.executable,
            "-m",
            "tokenmux.cli",
            "serve",
            "--listen",
            address,
            "--model",
            "a=nothing",
        ]
        done = subprocess.run(
            [*command, "--catalogue", str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
        )
    assert done.returncode == 2
    assert "the port is in use" in done.stderr
    assert "nothing" not in done.stderr
    assert "Traceback" not in done.stderr


def pair(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "1",
         "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def read(certificate: Path, private_key: Path) -> None:
    tls = TlsConfig.model_construct(certificate=certificate, private_key=private_key)
    read_transport(PoolConfig.model_construct(tls=tls))


@OPENSSL
def test_a_key_of_another_certificate_is_said_to_be_that(tmp_path: Path) -> None:
    ours, others = pair(tmp_path, "ours"), pair(tmp_path, "others")
    read(*ours)
    with pytest.raises(ConfigError, match=r"others\.key does not belong to the certificate .*ours\.pem"):
        read(ours[0], others[1])


@OPENSSL
def test_files_that_are_no_certificate_or_no_key_are_named(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path, "ours")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match=r"tls\.certificate: .*text holds no certificate in PEM"):
        read(tmp_path / "text", key)
    with pytest.raises(ConfigError, match=r"tls\.certificate: .*ours\.key holds no certificate"):
        read(key, certificate)
    with pytest.raises(ConfigError, match=r"tls\.private_key: .*ours\.pem holds no private key"):
        read(certificate, certificate)
    damaged = tmp_path / "damaged.key"
    damaged.write_text(key.read_text().replace("M", "!", 3))
    with pytest.raises(ConfigError, match="one of them is damaged"):
        read(certificate, damaged)


@OPENSSL
def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_passphrase(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path, "ours")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", key, "-out", locked, "-passout", "pass:sesame"],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match=r"locked\.key is encrypted.*decrypt it"):
        read(certificate, locked)
