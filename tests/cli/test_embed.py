"""`tokenmux embed` against the real server over scripted nodes: the hidden state of a letter is its code."""

import json
from collections.abc import Iterator

import pytest

from tests.cli.runner import refused, run
from tests.server.harness import ServerThread, serving
from tests.server.scripted_models import FakeEntry, facts
from tokenmux.core.pooling import Pooling


@pytest.fixture(scope="module")
def embedding() -> Iterator[ServerThread]:
    pooling = Pooling("mean", normalised=False, n_dimensions=3, shortens=True)
    with ServerThread(lambda: serving(FakeEntry(facts("letters"), embedding=pooling))) as server:
        yield server


def test_a_line_is_a_vector(embedding: ServerThread) -> None:
    result = run(embedding, "embed", "letters", "a", "bd")
    assert (result.exit_code, result.stdout) == (0, "[97.0, 97.0, 97.0]\n[99.0, 99.0, 99.0]\n")


def test_texts_come_from_stdin_and_vectors_may_be_shorter(embedding: ServerThread) -> None:
    result = run(embedding, "embed", "letters", "-", "--dimensions", "1", stdin="a\nb\n")
    assert (result.exit_code, result.stdout) == (0, "[97.0]\n[98.0]\n")
    whole = json.loads(run(embedding, "embed", "letters", "ab", "--json").stdout)
    assert (whole["model"], whole["n_prompt_tokens"], whole["values"]) == ("letters", 2, [[97.5] * 3])


def test_what_is_refused_is_one_line(embedding: ServerThread, server: ServerThread) -> None:
    assert "dimensions 9 is not available" in refused(
        run(embedding, "embed", "letters", "a", "--dimensions", "9"), 1
    )
    assert "letters makes no embeddings" in refused(run(server, "embed", "letters", "a"), 1)
    assert "there are no inputs" in refused(run(embedding, "embed", "letters", "-"), 1)
