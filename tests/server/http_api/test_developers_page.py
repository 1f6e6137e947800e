"""The examples of docs/developers.md run as they are written there, but for the addresses and the model."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.harness import Served, ServerThread, serving
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.core.pooling import Pooling
from tokenmux.server.http_api.http_server import HttpTransport

PAGE = (Path(__file__).parents[3] / "docs/developers.md").read_text()
POOLING = Pooling("mean", True, 3)
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    letters = LetterTokenizer(template="{{ tools }}<tool_call>")
    with ServerThread(
        lambda: serving(FakeEntry(facts("small"), letters=letters, embedding=POOLING), http=HttpTransport())
    ) as it:
        yield it.served


@pytest.mark.parametrize("number", range(len(BLOCKS)))
# OpenAI's clients of the page live as long as their programs
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_example(number: int, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    program = BLOCKS[number].replace("127.0.0.1:8000", f"127.0.0.1:{served.http_port}")
    program = program.replace("127.0.0.1:50051", served.target)
    exec(compile(program, f"docs/developers.md, example {number}", "exec"), {"__name__": "__main__"})  # noqa: S102 - ours
    said = capsys.readouterr().out
    if "print(" in program and "tool_calls" not in program:
        assert said.strip()
    assert served.front.n_live == 0


def test_both_dialects_are_shown() -> None:
    assert sum("from tokenmux import" in block for block in BLOCKS) >= 6
    assert sum("from openai import" in block for block in BLOCKS) >= 6
