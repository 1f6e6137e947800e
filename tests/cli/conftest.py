"""A server with one model for every test of a command that talks to one."""

from collections.abc import Iterator

import pytest

from tests.server.harness import ServerThread, serving
from tests.server.scripted_models import FakeEntry, facts


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread(lambda: serving(FakeEntry(facts("letters")))) as running:
        yield running
