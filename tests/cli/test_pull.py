"""`tokenmux pull`: what it refuses. The download itself is tested with the catalogue."""

from pathlib import Path

from tests.cli.runner import refused, run


def test_pull_needs_a_repository_that_is_one(tmp_path: Path) -> None:
    line = refused(run(None, "pull", "not a repository", "--catalogue", str(tmp_path), "--name", "x"), 1)
    assert line.startswith("error: not a repository:")
    assert list(tmp_path.rglob("*")) == []
