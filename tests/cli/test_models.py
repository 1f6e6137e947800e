"""`tokenmux models` against the real server over scripted nodes."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.runner import run
from tests.server.harness import PATIENCE_S, ServerThread
from tokenmux.cli.models import _progress
from tokenmux.client import Operation, OperationState
from tokenmux.client.operations import Operations
from tokenmux.core.progress import Progress
from tokenmux.messages.commands import Load, Pin, Unload
from tokenmux.server.front.cancellation import Cancellation


def test_models_are_managed(server: ServerThread, tmp_path: Path) -> None:
    hub = server.served.hub
    assert run(server, "models", "register", "more", str(tmp_path)).stdout == "more is served\n"
    assert run(server, "models", "load", "more").exit_code == 0
    assert server.do(hub.next(Load)).model == "more"
    assert run(server, "models", "pin", "more").stdout == "more is pinned\n"
    assert server.do(hub.next(Pin)).pinned
    assert run(server, "models", "unpin", "more").exit_code == 0
    assert not server.do(hub.next(Pin)).pinned
    assert run(server, "models", "unload", "more").exit_code == 0
    assert server.do(hub.next(Unload)).model == "more"
    listed = json.loads(run(server, "models", "list", "--json").stdout)
    assert [model["name"] for model in listed] == ["letters", "more"]
    assert run(server, "models", "remove", "more").stdout == "more is removed\n"
    assert "more" not in run(server, "models", "list").stdout


def test_ctrl_c_cancels_a_registration_and_nothing_is_kept(
    server: ServerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def convert(progress: Progress, cancellation: Cancellation) -> None:
        progress("converting", 1, 4)
        with cancellation.tells(ended.set):
            assert ended.wait(PATIENCE_S)
        cancellation.check()

    server.served.catalogue.while_registering = convert
    watch = Operations.watch

    def interrupted(self: Operations, name: str) -> Iterator[Operation]:
        for state in watch(self, name):
            yield state
            if state.doing:
                raise KeyboardInterrupt

    monkeypatch.setattr(Operations, "watch", interrupted)
    assert run(server, "models", "register", "more", str(tmp_path)).exit_code != 0
    monkeypatch.undo()
    assert ended.wait(PATIENCE_S)
    assert run(server, "models", "register", "other", str(tmp_path)).exit_code == 0
    assert server.served.catalogue.names() == ["letters", "other"]


def test_progress_is_said_in_parts_of_a_hundred() -> None:
    state = Operation("operations/1", "m", OperationState.RUNNING, "", 0, 0, 0.0, "", "")
    assert _progress(state) == "registering m"
    state = Operation("operations/1", "m", OperationState.RUNNING, "converting", 1, 4, 0.0, "", "")
    assert _progress(state) == "registering m: converting, 25%"
