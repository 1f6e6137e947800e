"""Runs the command line as a user does, in this process."""

from typer.testing import CliRunner, Result

from tests.server.harness import ServerThread
from tokenmux.cli.app import app


def run(server: ServerThread | None, *arguments: str, stdin: str = "") -> Result:
    target = [] if server is None else ["--server", server.served.target]
    return CliRunner().invoke(app, [*target, *arguments], input=stdin, catch_exceptions=False)


def refused(result: Result, status: int) -> str:
    """The one line on stderr."""
    assert result.exit_code == status
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line
