"""`tokenmux models` against the real server over scripted nodes."""

import json
from pathlib import Path

from tests.cli.runner import run
from tests.server.harness import ServerThread
from tokenmux.messages.commands import Load, Pin, Unload


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
