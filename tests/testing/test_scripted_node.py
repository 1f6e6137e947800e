"""What scripted nodes promise to whoever tests with them."""

import pytest

from tokenmux.core.errors import ProcessFailed
from tokenmux.core.facts import InstanceId
from tokenmux.messages.commands import AddDevice, Command, Load, Order, Register, RemoveDevice, Resize, Ticket
from tokenmux.messages.reports import Acknowledged, Reports
from tokenmux.messages.setups import DeviceSetup, PresentDevices
from tokenmux.testing import make_device, make_model
from tokenmux.testing.scripted_node import ScriptedNode, ScriptedNodes

MODEL = make_model("m")


def started(nodes: ScriptedNodes) -> tuple[ScriptedNode, list[Reports]]:
    said: list[Reports] = []
    return nodes.factory(said.append, devices=PresentDevices({}, 2)), said


def answers(said: list[Reports]) -> list[Acknowledged]:
    return [report for reports in said for report in reports.reports if isinstance(report, Acknowledged)]


async def test_commands_are_acknowledged_and_can_be_waited_for() -> None:
    nodes = ScriptedNodes()
    node, said = started(nodes)
    first: Command = Register(MODEL, path="")
    node.send(Order(Ticket(1), first))
    node.send(Order(Ticket(2), Load(MODEL.id)))
    assert await nodes.next(Load) == Load(MODEL.id), "others before it are skipped"
    assert nodes.unread() == []
    assert [(answer.ticket, answer.error) for answer in answers(said)] == [(1, ""), (2, "")]


async def test_a_model_is_refused_with_what_the_test_says() -> None:
    nodes = ScriptedNodes()
    nodes.refuses["m"] = "no room"
    node, said = started(nodes)
    node.send(Order(Ticket(7), Load(MODEL.id)))
    assert [(answer.ticket, answer.error) for answer in answers(said)] == [(7, "no room")]


async def test_a_command_about_a_device_may_be_left_without_an_answer() -> None:
    nodes = ScriptedNodes()
    nodes.answer_devices = False
    node, said = started(nodes)
    node.send(Order(Ticket(3), Resize(500)))
    assert (node.device_ticket, said) == (3, [])


async def test_a_device_that_is_added_gets_the_next_number() -> None:
    nodes = ScriptedNodes()
    node, said = started(nodes)
    node.send(Order(Ticket(1), AddDevice(DeviceSetup(make_device()))))
    nodes.refuses["device"] = "no room"
    node.send(Order(Ticket(2), AddDevice(DeviceSetup(make_device()))))
    node.send(Order(Ticket(3), RemoveDevice(InstanceId(2))))
    assert [(answer.error, answer.instance) for answer in answers(said)] == [
        ("", 2),
        ("no room", None),
        ("no room", None),
    ]


async def test_a_killed_node_takes_nothing_and_a_start_can_fail() -> None:
    nodes = ScriptedNodes()
    nodes.fails_to_start = 1
    with pytest.raises(OSError, match="no more processes"):
        started(nodes)
    node, _ = started(nodes)
    node.kill()
    with pytest.raises(ProcessFailed):
        node.send(Order(Ticket(1), Load(MODEL.id)))
    assert (nodes.node, len(nodes.nodes)) == (node, 1)
