"""The command line against the real server over scripted workers: output, exit status, errors in a line."""

import io
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.server.harness import (
    FakeEntry,
    ServerThread,
    facts,
    serving,
    worker_status,
    worker_use,
)
from tokenmux.cli.app import app
from tokenmux.cli.talk import show_stream
from tokenmux.cli.text import safe
from tokenmux.client import Delta
from tokenmux.messages.commands import Load, Pin, Resize, Submit, Unload
from tokenmux.server.grpc_api.access import Key, Scope


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread(lambda: serving(FakeEntry(facts("letters")))) as running:
        yield running


def run(server: ServerThread | None, *arguments: str, stdin: str = "") -> Result:
    target = [] if server is None else ["--server", server.served.target]
    return CliRunner().invoke(app, [*target, *arguments], input=stdin, catch_exceptions=False)


def refused(result: Result, status: int) -> str:
    """The one line on stderr."""
    assert result.exit_code == status
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


# Talking


def test_generate_prints_the_text(server: ServerThread) -> None:
    result = run(server, "generate", "letters", "abc", "-n", "5")
    assert (result.exit_code, result.stdout) == (0, "defgh\n")


def test_generate_reads_stdin_and_sends_every_option(server: ServerThread) -> None:
    options = [
        "-n",
        "9",
        "-t",
        "0.5",
        "--top-k",
        "3",
        "--top-p",
        "0.25",
        "--seed",
        "7",
        "--stop",
        "f",
        "--stop",
        "zz",
    ]
    result = run(server, "generate", "letters", "-", *options, "--stats", stdin="abc")
    assert result.stdout == "de\n"
    assert "ended by stop, seed 7" in result.stderr.replace("\n", " ")
    submit = server.do(server.served.hub.next(Submit))
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed) == (0.5, 3, 0.25, 7)
    assert (submit.prompt, submit.request.max_tokens) == (tuple(b"abc"), 9)


def test_generate_as_json(server: ServerThread) -> None:
    result = run(server, "generate", "letters", "abc", "-n", "2", "--json")
    answer = json.loads(result.stdout)
    assert (answer["text"], answer["finish"]["reason"]) == ("de", "length")


def test_chat_remembers_until_the_input_ends(server: ServerThread) -> None:
    result = run(server, "chat", "letters", "--system", "be", "-n", "2", stdin="hi\n\nyo\n")
    assert (result.exit_code, result.stdout) == (0, "<=\n<=\n")
    first, second = (server.do(server.served.hub.next(Submit)).prompt for _ in range(2))
    assert bytes(first) == b"s:be;u:hi;"
    assert bytes(second) == b"s:be;u:hi;a:<=;u:yo;"


# Operating


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


def test_models_and_status_are_shown(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert "no worker is running" in run(server, "pool", "status").stdout
    server.do(server.post(worker_status("letters")))
    table = run(server, "models", "list").stdout
    assert "letters" in table
    assert "resident" in table
    shown = run(server, "pool", "status").stdout
    for part in (
        "0 of 256 requests",
        "virtual GPU",
        "2.0 KiB weights",
        "running letters",
        "resident",
        "1500 ms",
    ):
        assert part in shown
    status = json.loads(run(server, "pool", "status", "--json").stdout)
    assert status["models"][0]["residency"] == "resident"


# Errors


def test_the_pool_is_resized(server: ServerThread) -> None:
    result = run(server, "pool", "resize", "512MiB")
    assert (result.exit_code, result.stdout) == (0, "the pool has 512.0 MiB of device memory\n")
    assert server.do(server.served.hub.next(Resize)) == Resize(512 << 20)
    server.served.hub.refuses["resize"] = "512 bytes is too little"
    assert "512 bytes is too little" in refused(run(server, "pool", "resize", "512"), 1)
    for nonsense, message in (
        ("lots", "is not a size"),
        ("0", "more than nothing"),
        ("9999999TiB", "less than"),
    ):
        assert message in refused(run(server, "pool", "resize", nonsense), 2)


def test_what_the_server_refuses_is_a_line_and_status_1(server: ServerThread) -> None:
    line = refused(run(server, "generate", "lettres", "abc"), 1)
    assert line.startswith("error: no model named 'lettres'; did you mean 'letters'?")


def test_a_server_that_is_not_there(server: ServerThread) -> None:
    line = refused(run(None, "--server", "127.0.0.1:1", "models", "list"), 1)
    assert line.endswith("is a server running on 127.0.0.1:1?")


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [Key.of("boss", Scope.ADMIN, "open")]
    with ServerThread(lambda: serving(keys=keys)) as server:
        assert "needs an API key" in refused(run(server, "models", "list"), 1)
        monkeypatch.setenv("TOKENMUX_API_KEY", "open")
        assert run(server, "models", "list").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], "error: none.yaml: cannot be read: No such file or directory"),
        (["--arena", "lots"], "error: command line: --arena: device.arena: 'lots' is not a size"),
        (["--model", "nameless"], "error: --model nameless: write NAME=PATH"),
        (
            ["--listen", "0.0.0.0:1"],
            "error: command line: --listen: listen: 0.0.0.0:1 can be reached from other",
        ),
    ],
)
def test_a_wrong_configuration_is_status_2(arguments: list[str], message: str) -> None:
    assert refused(run(None, "serve", *arguments), 2).startswith(message)


def test_a_wrong_line_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text("device:\n  kind: toaster\n")
    line = refused(run(None, "serve", "--config", str(path)), 2)
    assert line == f"error: {path}:2: device.kind: should be 'cpu' or 'cuda', and is 'toaster'"


def test_wrong_usage_is_status_2(server: ServerThread) -> None:
    assert run(server, "generate").exit_code == 2
    assert run(server, "nonsense").exit_code == 2


# The program itself


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
    for command in ("serve", "generate", "chat", "models", "pool"):
        assert f"│ {command} " in result.stdout
    assert "heavy: []" in result.stdout


def test_pull_needs_a_repository_that_is_one(tmp_path: Path) -> None:
    line = refused(run(None, "pull", "not a repository", "--catalogue", str(tmp_path), "--name", "x"), 1)
    assert line.startswith("error: not a repository:")
    assert list(tmp_path.rglob("*")) == []


def test_a_model_that_is_not_there_is_told_before_anything_listens(tmp_path: Path) -> None:
    arguments = ["--model", f"m={tmp_path / 'none'}", "--catalogue", str(tmp_path / "kept")]
    line = refused(run(None, "serve", *arguments), 1)
    assert (
        line
        == f"error: no model can be served; m: {tmp_path / 'none'}: there is no such folder or file on the server"
    )


# What others say, and what is not possible


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", str(2**40)], "--max-tokens"),
        (["-n", "0"], "--max-tokens"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["--top-k", str(10**11)], "--top-k"),
    ],
)
def test_numbers_that_cannot_be_sent_are_wrong_usage(
    server: ServerThread, arguments: list[str], message: str
) -> None:
    result = run(server, "generate", "letters", "abc", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


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


@pytest.mark.parametrize("command", [["generate", "letters", "-"], ["chat", "letters"]])
def test_input_that_is_not_utf8(server: ServerThread, command: list[str]) -> None:
    arguments = ["--server", server.served.target, *command]
    result = CliRunner().invoke(app, arguments, input=b"\xff\xfe\n", catch_exceptions=False)
    assert refused(result, 2).startswith("error: an argument or the input is not valid UTF-8 text")


@pytest.mark.parametrize("size", ["9" * 400, "1e400", "9" * 30 + "TiB"])
def test_sizes_of_any_length(server: ServerThread, size: str) -> None:
    assert len(refused(run(server, "pool", "resize", size), 2)) < 300


@pytest.mark.parametrize("name", ["[/b]", "[bold red blink]x", "\x1b]0;owned\x07"])
def test_names_are_neither_markup_nor_escapes(server: ServerThread, name: str) -> None:
    for arguments in (["models", "register", name, "x"], ["models", "load", name]):
        assert "Traceback" not in run(server, *arguments).stderr
    status = worker_status("letters")
    server.do(server.post(replace(status, device=name)))
    server.do(server.post(worker_use("letters", tenants=[name])))
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


@pytest.mark.parametrize(("target", "status"), [("/dev/full", 1), ("head", 1)])
def test_output_that_cannot_be_written_is_told_in_a_line(
    server: ServerThread, target: str, status: int
) -> None:
    command = [sys.executable, "-m", "tokenmux.cli.app", "--server", server.served.target]
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


def test_a_key_for_another_machine_needs_tls() -> None:
    result = run(None, "--server", "10.1.2.3:1", "--api-key", "sesame", "models", "list")
    assert "in the clear" in refused(result, 2)
