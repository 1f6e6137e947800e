"""Where requests are told to be in the line, and how much is said to tell them."""

from math import log

import pytest

from tests.node.scenes import A, B, node_with, request
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import RequestId
from tokenmux.messages.commands import Cancel, Pause
from tokenmux.testing.virtual_node import NodeOnVirtualTime


def told(body: NodeOnVirtualTime, name: str) -> list[int]:
    """The positions that a request was told, in order."""
    return [
        message.position
        for message in body.said
        if isinstance(message, PhaseChanged)
        and message.request == name
        and message.phase is RequestPhase.QUEUED
    ]


def test_a_lone_request_has_nobody_before_it() -> None:
    body = node_with(n_output={"r": 10})
    body.submit_at(request("r", A, n_output=10))
    body.clock.run()
    assert set(told(body, "r")) == {0}


def test_each_is_told_how_many_are_before_it_and_again_as_the_line_moves() -> None:
    """Model A's requests wait until it is loaded, those of B until there is room for it as well."""
    names = [f"r{i}" for i in range(8)]
    body = node_with(n_output=dict.fromkeys(names, 200))
    start_s = body.clock.now_s()
    for i, name in enumerate(names):
        body.submit_at(request(name, A if i < 4 else B, start_s + 0.01 * i, 200))
    body.clock.run()
    for i, name in enumerate(names):
        positions = told(body, name)
        assert positions[0] == i
        assert positions == sorted(positions, reverse=True)
    assert told(body, "r7")[-1] <= 3, "A's four run, B's are still there"


def test_who_leaves_the_line_without_having_run_makes_it_shorter() -> None:
    names = ["r", "s", "t", "u"]
    body = node_with(n_output=dict.fromkeys(names, 10))
    start_s = body.clock.now_s()
    for i, name in enumerate(names):
        body.submit_at(request(name, A, start_s + 0.01 * i, 10))
    body.clock.call_at(start_s + 0.1, lambda: body.send(Cancel(RequestId("r"))))
    body.clock.call_at(start_s + 0.1, lambda: body.send(Pause(RequestId("s"))))
    body.clock.run(until_s=start_s + 0.9)
    assert told(body, "u") == [3, 1]
    assert told(body, "t") == [2, 0]
    assert len(body.instance.queue) == 3
    body.send(Cancel(RequestId("s")))
    body.clock.run()
    assert len(body.instance.queue) == 0


@pytest.mark.parametrize("n", [50, 1500])
def test_a_long_line_is_told_little(n: int) -> None:
    names = [f"r{i:04}" for i in range(n)]
    body = node_with(n_output=dict.fromkeys(names, 20))
    start_s = body.clock.now_s()
    for i, name in enumerate(names):
        body.submit_at(request(name, A, start_s + 0.0001 * i, 20))
    body.clock.run()
    counts = [len(told(body, name)) for name in names]
    assert max(counts) <= 12 + 11 * log(n)
    assert told(body, names[-1])[0] == n - 1
    assert told(body, names[-1])[-1] < n - 1
