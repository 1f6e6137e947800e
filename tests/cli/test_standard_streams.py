"""Commands write to whatever they were given."""

import io
import sys

import pytest

from tokenmux.cli.standard_streams import make_usable


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_what_a_terminal_cannot_show_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch, name: str, encoding: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding=encoding))
    make_usable()
    print("\u2264 1", file=getattr(sys, name), flush=True)
    assert written.getvalue() == b"? 1\n"


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_is_replaced(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, name, None)
    make_usable()
    with getattr(sys, name) as stream:
        assert stream.fileno() > 2
