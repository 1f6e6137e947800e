"""The program itself: its help, how it reaches a server, and errors as a line and an exit status."""

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer

from tests.cli.runner import refused, run
from tests.server.harness import ServerThread, serving
from tokenmux.cli.app import app
from tokenmux.server.front.api_keys import Key, Scope
from tokenmux.server.http_api.http_server import HttpTransport


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize(("arguments", "status"), [(["--version"], 0), (["plan", "--goal", "2"], 2)])
def test_libraries_have_no_say_at_the_end_of_a_command_that_loaded_them(
    loaded: bool, arguments: list[str], status: int
) -> None:
    """Triton's bindings print pages about leaks while Python exits."""
    code = (
        "import atexit, sys, types\n"
        f"if {loaded}: sys.modules['triton'] = types.ModuleType('triton')\n"
        "atexit.register(lambda: print('leaks'))\n"
        f"sys.argv = ['tokenmux', *{arguments}]\n"
        "from tokenmux.cli.app import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("leaks" in done.stdout) is not loaded
    assert ("tokenmux " in done.stdout) is (status == 0)
    assert ("--goal" in done.stderr) is (status == 2)


def test_help_is_complete_and_brings_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from tokenmux.cli.app import app\n"
        "try:\n"
        "    app(['--help'], prog_name='tokenmux')\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'grpc', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))\n"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    for command in ("serve", "pull", "demo", "generate", "chat", "models", "pool", "plan", "kernels"):
        assert f"│ {command} " in result.stdout
    assert "heavy: []" in result.stdout


def commands(command: click.Command, name: str = "tokenmux") -> Iterator[tuple[str, click.Command]]:
    """The command and all below it, by what a user types."""
    yield name, command
    for part, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {part}")


def test_every_command_and_every_option_says_what_it_does() -> None:
    found = dict(commands(typer.main.get_command(app)))
    assert len(found) > 15
    silent = [name for name, command in found.items() if not command.help]
    for name, command in found.items():
        silent += [f"{name} {param.name}" for param in command.params if not getattr(param, "help", None)]
    assert silent == []


def test_what_the_server_refuses_is_a_line_and_status_1(server: ServerThread) -> None:
    line = refused(run(server, "generate", "lettres", "abc"), 1)
    assert line.startswith("error: no model named 'lettres'; did you mean 'letters'?")


def test_a_server_that_is_not_there(server: ServerThread) -> None:
    line = refused(run(None, "--server", "127.0.0.1:1", "models", "list"), 1)
    assert line.endswith("is a server running on 127.0.0.1:1?")


@pytest.mark.parametrize(
    "target", ["foo", ":1", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:1", "::1:1"]
)
def test_an_address_that_is_none_is_refused_before_connecting(target: str) -> None:
    line = refused(run(None, "--server", target, "models", "list"), 2)
    assert line.startswith(f"error: {target!r} is not an address: write HOST:PORT")


def test_a_server_that_answered_is_there() -> None:
    with ServerThread(serving) as server:
        server.do(server.served.front.drain())
        line = refused(run(server, "generate", "letters", "abc"), 1)
    assert "shutting down" in line
    assert "is a server running" not in line


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [Key.of("boss", Scope.ADMIN, "open")]
    with ServerThread(lambda: serving(keys=keys)) as server:
        assert "needs an API key" in refused(run(server, "models", "list"), 1)
        monkeypatch.setenv("TOKENMUX_API_KEY", "open")
        assert run(server, "models", "list").exit_code == 0


def test_a_key_for_another_machine_needs_tls() -> None:
    result = run(None, "--server", "10.1.2.3:1", "--api-key", "sesame", "models", "list")
    assert "in the clear" in refused(result, 2)


def test_wrong_usage_is_status_2(server: ServerThread) -> None:
    assert run(server, "generate").exit_code == 2
    assert run(server, "nonsense").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "letters", "\udcff"],
        ["generate", "\udcff", "a"],
        ["generate", "letters", "a", "--stop", "\udcff"],
        ["chat", "letters", "--system", "\udcff"],
        ["models", "register", "\udcff", "x"],
        ["models", "load", "\udcff"],
    ],
)
def test_arguments_that_are_not_utf8(server: ServerThread, arguments: list[str]) -> None:
    line = refused(run(server, *arguments, stdin="hi\n"), 2)
    assert line.startswith("error: ")


@pytest.mark.parametrize(("target", "status"), [("/dev/full", 1), ("head", 1)])
def test_output_that_cannot_be_written_is_told_in_a_line(
    server: ServerThread, target: str, status: int
) -> None:
    command = [sys.executable, "-m", "tokenmux.cli", "--server", server.served.target]
    command += ["generate", "letters", "abc", "-n", "50"]
    if target == "head":
        reader, writer = os.pipe()
        os.close(reader)
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert result.stderr == ""
    else:
        with open(target, "w") as full:
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert result.stderr == "error: the output cannot be written: No space left on device\n"
    assert result.returncode == status


def started(shell: str) -> "subprocess.CompletedProcess[str]":
    """The command as a shell starts it, with what it says."""
    command = f"exec {sys.executable} -m tokenmux.cli {shell}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_what_an_option_prints_can_fail_too(option: str) -> None:
    result = started(f"{option} >/dev/full")
    assert (result.returncode, result.stderr) == (
        1,
        "error: the output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize(
    "shell", ["generate letters abc -n 3 >&-", "generate letters abc -n 3 >&- 2>&-", "chat letters <&-"]
)
def test_a_stream_that_is_closed_is_an_empty_one(server: ServerThread, shell: str) -> None:
    result = started(f"--server {server.served.target} {shell}")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_server_of_another_kind_is_named() -> None:
    with ServerThread(lambda: serving(http=HttpTransport())) as server:
        line = refused(run(None, "--server", f"127.0.0.1:{server.served.http_port}", "models", "list"), 1)
        assert "it speaks HTTP/1: give the address of gRPC (`listen`)" in line
        line = refused(run(server, "--tls", "models", "list"), 1)
        assert f"something answers at {server.served.target}: it does not speak TLS: leave out --tls" in line
