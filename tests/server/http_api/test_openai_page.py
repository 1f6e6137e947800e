"""What docs/openai.md shows works as it is written there, but for the address and the model."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.harness import ServerThread, serving
from tokenmux.server.http_api.http_server import HttpTransport

PAGE = (Path(__file__).parents[3] / "docs/openai.md").read_text()


def block(language: str, port: int | None) -> str:
    """The page's example in a language, for a server of these tests."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1].replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace('"small"', '"letters"')


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_example_with_curl() -> None:
    with ServerThread(lambda: serving(http=HttpTransport())) as server:
        said = output(["sh", "-c", block("sh", server.served.http_port)])
        assert '"object":"chat.completion"' in said
        assert '"completion_tokens":20' in said


def test_the_example_with_openais_client() -> None:
    with ServerThread(lambda: serving(http=HttpTransport())) as server:
        assert len(output([sys.executable, "-c", block("python", server.served.http_port)])) == 20
