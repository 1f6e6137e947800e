"""`tokenmux generate` and `tokenmux chat` against the real server over scripted nodes."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.runner import refused, run
from tests.server.harness import PATIENCE_S, ServerThread, serving
from tests.server.http_api.http_calls import answer_with
from tests.server.scripted_models import FakeEntry, LetterTokenizer, facts
from tokenmux.cli.app import app
from tokenmux.core.sampling import LogitRules
from tokenmux.messages.commands import Submit


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
        "--min-p",
        "0.125",
        "--repetition-penalty",
        "1.5",
        "--frequency-penalty",
        "0.5",
        "--presence-penalty=-0.25",
        "--logit-bias",
        "42:-100",
        "--bad-word",
        "xy",
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
    assert sampling.min_p == 0.125
    forbidden = (tuple(b"xy"), tuple(b" xy"))
    assert sampling.rules == LogitRules(1.5, 0.5, -0.25, ((42, -100.0),), forbidden)
    assert (submit.prompt, submit.request.max_tokens) == (tuple(b"abc"), 9)


def test_generate_shows_what_it_is_asked_to_show(server: ServerThread) -> None:
    result = run(server, "generate", "letters", "abc", "--stop", "f", "--include-stop", "--echo")
    assert result.stdout == "abcdef\n"
    result = run(server, "generate", "letters", "xabc", "-n", "2", "--truncate", "3", "--request-id", "mine")
    assert result.stdout == "de\n"
    submits = [server.do(server.served.hub.next(Submit)) for _ in range(2)]
    assert submits[1].request.id.startswith("mine/")
    assert bytes(submits[1].prompt) == b"abc"


def test_generate_says_what_the_prefix_cache_had_and_may_do_without(server: ServerThread) -> None:
    hub = server.served.hub
    hub.n_cached = 2
    result = run(server, "generate", "letters", "abc", "-n", "2", "--stats", "--cache-salt", "pepper")
    assert "3 prompt tokens (2 cached), 2 tokens" in result.stderr.replace("\n", " ")
    hub.n_cached = 0
    result = run(server, "generate", "letters", "abc", "-n", "2", "--stats", "--no-prefix-cache")
    assert "3 prompt tokens, 2 tokens" in result.stderr.replace("\n", " ")
    salted, without = (server.do(hub.next(Submit)) for _ in range(2))
    assert (salted.prefix_cache, salted.cache_salt) == (True, "pepper")
    assert (without.prefix_cache, without.cache_salt) == (False, None)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", str(2**40)], "--max-tokens"),
        (["-n", "-1"], "--max-tokens"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
        (["--top-k", str(10**11)], "--top-k"),
        (["--logit-bias", "5"], "'5' is not a bias: write ID:BIAS"),
    ],
)
def test_numbers_that_cannot_be_sent_are_wrong_usage(
    server: ServerThread, arguments: list[str], message: str
) -> None:
    result = run(server, "generate", "letters", "abc", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", [["generate", "letters", "-"], ["chat", "letters"]])
def test_input_that_is_not_utf8(server: ServerThread, command: list[str]) -> None:
    arguments = ["--server", server.served.target, *command]
    result = CliRunner().invoke(app, arguments, input=b"\xff\xfe\n", catch_exceptions=False)
    assert refused(result, 2).startswith("error: an argument or the input is not valid UTF-8 text")


def test_generate_prints_several_answers_and_log_probabilities_of_the_prompt(
    server: ServerThread,
) -> None:
    result = run(server, "generate", "letters", "abc", "-n", "3", "--choices", "2", "--prompt-logprobs", "1")
    assert result.stdout == "def\ndef\n"
    assert result.stderr.splitlines() == [
        "prompt token 97",
        "prompt token 98 -98.0000  98 -98.0000",
        "prompt token 99 -99.0000  99 -99.0000",
        "answer 1 of 2",
        "answer 2 of 2",
    ]
    streamed = run(server, "generate", "letters", "ab", "-n", "1", "--prompt-logprobs", "0")
    assert streamed.stdout == "c\n"
    assert "prompt token 98 -98.0000" in streamed.stderr
    scored = run(server, "generate", "letters", "ab", "-n", "0", "--prompt-logprobs", "0", "--stats")
    assert scored.stdout == "\n"
    assert "prompt token 98 -98.0000" in scored.stderr
    assert "2 prompt tokens, 0 tokens" in scored.stderr


def test_chat_shows_calls_of_tools_and_asks_for_their_results(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "now"}}]')
    letters = LetterTokenizer(template="{{ tools }}<tool_call>", width=1)
    entry = FakeEntry(facts("letters"), letters=letters)
    with ServerThread(lambda: serving(entry, auto=False)) as server, ThreadPoolExecutor(1) as thread:
        chatting = thread.submit(run, server, "chat", "letters", "--tools", str(tools), stdin="hi\nnoon\n")
        call = '<tool_call>{"name": "now", "arguments": {"zone": "CET"}}</tool_call>'
        server.do(answer_with(server.served, call))
        again = server.do(answer_with(server.served, "It is noon."))
        result = chatting.result(PATIENCE_S)
        assert (result.exit_code, result.stdout) == (0, 'now({"zone": "CET"})\nIt is noon.\n')
        assert "".join(map(chr, again.prompt)) == "u:hi;a:;t:noon;t:now;"


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]"])
def test_a_file_without_tools_is_wrong_usage(server: ServerThread, tmp_path: Path, content: str) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(content)
    result = run(server, "chat", "letters", "--tools", str(tools), stdin="hi\n")
    assert result.exit_code == 2
    assert "Invalid value" in result.stderr
