"""One whole server with real models whose processes are stopped, killed and told to end. Every wait is for
an event."""

import os
import select
import signal
from pathlib import Path

import pytest

from tests.server.test_serve import node_of, real_server
from tokenmux.client import CallFailed, Client, Delta

PATIENCE_MS = 60_000
PROMPT = "Once upon a time"


def stream(client: Client, after_ten: object = None, **options: object) -> tuple[int, ...]:
    """The tokens of a long answer; `after_ten` is called when ten of them have come."""
    tokens: list[int] = []
    for event in client.stream("llama", PROMPT, temperature=1.0, seed=5, ignore_end_tokens=True, **options):  # type: ignore[arg-type]
        if isinstance(event, Delta):
            before = len(tokens)
            tokens += event.token_ids
            if before < 10 <= len(tokens) and callable(after_ten):
                after_ten()
    return tuple(tokens)


def test_a_stopped_node_is_replaced_and_a_signal_to_all_processes_lets_streams_complete(
    tmp_path: Path,
) -> None:
    with real_server(tmp_path, "node: {silent_s: 2}\n") as (process, address), Client(address) as client:
        alone = stream(client, max_tokens=120)
        stopped = node_of(process.pid)
        assert stream(client, lambda: os.kill(stopped, signal.SIGSTOP), max_tokens=120) == alone
        # On a busy machine the node may have drawn all tokens before the client has read ten of them.
        later = (status for status in client.pool.watch() if status.n_restarts and status.instances)
        n_restarts = next(later).n_restarts
        assert node_of(process.pid) != stopped

        tokens = stream(client, lambda: os.killpg(process.pid, signal.SIGTERM), max_tokens=120)
        assert tokens == alone, "the node goes on while the front drains"
        assert process.wait(30) == 0
        log = (tmp_path / "log").read_text()
        assert log.count("node broke") == n_restarts, "and does not end of itself"


def test_what_is_left_when_the_drain_is_over_is_told_how_far_it_came(tmp_path: Path) -> None:
    with (
        real_server(tmp_path, "drain_s: 0\n") as (process, address),
        Client(address, resumption=None) as client,
    ):
        with pytest.raises(CallFailed, match=r"the server stopped after \d+ tokens of request"):
            stream(client, lambda: os.killpg(process.pid, signal.SIGTERM), max_tokens=400)
        assert process.wait(30) == 0


@pytest.mark.parametrize("stop_node", [False, True])
def test_a_server_that_was_killed_leaves_no_node_behind(tmp_path: Path, stop_node: bool) -> None:
    with real_server(tmp_path) as (process, _):
        node = node_of(process.pid)
        ended = select.poll()
        ended.register(os.pidfd_open(node), select.POLLIN)
        if stop_node:
            os.kill(node, signal.SIGSTOP)
        process.kill()
        assert ended.poll(PATIENCE_MS), "the node outlived its server"


def test_a_stopped_node_does_not_keep_a_server_from_ending(tmp_path: Path) -> None:
    with real_server(tmp_path) as (process, _):
        os.kill(node_of(process.pid), signal.SIGSTOP)
        process.terminate()
        assert process.wait(30) == 0
