"""The names of `tokenmux` itself: which are public, that they are the client's, and that importing it
loads nothing."""

import subprocess
import sys

import pytest

import tokenmux
import tokenmux.client

STANDARD = sys.stdlib_module_names

PUBLIC = {
    "AsyncClient",
    "AsyncStream",
    "CallFailed",
    "Client",
    "Completion",
    "Delta",
    "Finish",
    "GenerateOptions",
    "Message",
    "Phase",
    "PromptInfo",
    "State",
    "Stream",
    "WrongArgument",
}
"""Programs of others import these: taking one away breaks them."""


def loaded_by(code: str) -> set[str]:
    """What a fresh Python has loaded after `code`, beyond what it starts with."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_the_clients() -> None:
    assert set(tokenmux.__all__) == PUBLIC
    assert set(dir(tokenmux)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(tokenmux, name) is getattr(tokenmux.client, name)


def test_a_name_that_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'tokenmux' has no attribute 'Server'"):
        _ = tokenmux.Server  # type: ignore[attr-defined]
    assert not hasattr(tokenmux, "ConfigError")


def test_importing_it_loads_nothing_but_itself() -> None:
    ours_or_theirs = {name for name in loaded_by("import tokenmux") if name.split(".")[0] not in STANDARD}
    assert ours_or_theirs == {"tokenmux"}


def test_a_name_loads_the_client_and_nothing_heavy() -> None:
    loaded = loaded_by("from tokenmux import Client")
    assert {"tokenmux.client", "grpc"} <= loaded
    assert not loaded & {"torch", "transformers", "numpy", "tokenmux.core", "tokenmux.server"}
