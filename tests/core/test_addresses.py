"""Addresses: what is loopback, and that the client, which imports nothing of ours, knows the same."""

import pytest

from tokenmux.client.connection import DEFAULT_ADDRESS as CLIENT_ADDRESS
from tokenmux.client.connection import is_local
from tokenmux.core.addresses import DEFAULT_ADDRESS, is_loopback


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
    ],
)
def test_server_and_client_know_what_is_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback
    assert is_local(address) is loopback


def test_a_client_looks_where_a_server_listens() -> None:
    assert CLIENT_ADDRESS == DEFAULT_ADDRESS
    assert is_loopback(DEFAULT_ADDRESS)
