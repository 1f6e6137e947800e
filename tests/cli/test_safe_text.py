"""Names, answers and messages cannot steer the terminal that they are shown on."""

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from tests.cli.runner import run
from tests.server.harness import ServerThread
from tests.server.sample_reports import device_status, node_status, node_use
from tokenmux.cli.safe_text import safe
from tokenmux.cli.streaming import show_stream
from tokenmux.client import Delta
from tokenmux.core.facts import InstanceId


@pytest.mark.parametrize("name", ["[/b]", "[bold red blink]x", "\x1b]0;owned\x07"])
def test_names_are_neither_markup_nor_escapes(server: ServerThread, name: str) -> None:
    for arguments in (["models", "register", name, "x"], ["models", "load", name]):
        assert "Traceback" not in run(server, *arguments).stderr
    status = node_status("letters")
    device = device_status("letters", device=name, fault=name, loading_model=name)
    server.do(server.post(replace(status, devices=(device, device_status(instance=InstanceId(1))))))
    server.do(server.post(node_use("letters", tenants=[name])))
    result = run(server, "pool", "status")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\x07" not in result.stdout
    if name.isprintable():
        assert name in result.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_an_answer_cannot_steer_the_terminal(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "a\x1b]0;owned\x07\tb\u200d\n\x9b31m\u05d0"
    monkeypatch.setattr(sys, "stdout", stream)
    show_stream([Delta(0, (), answer)], Console(file=io.StringIO()))
    shown = stream.getvalue()
    assert shown == (
        "a\ufffd]0;owned\ufffd\tb\u200d\n\ufffd31m\u05d0\n" if stream.isatty() else f"{answer}\n"
    )


@given(st.text())
def test_text_made_safe_has_no_control_characters(text: str) -> None:
    made = safe(text)
    assert len(made) == len(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in made)
