"""A policy that plans what a test tells it, each plan once."""

from tokenmux.core.event import Event
from tokenmux.core.plan import IDLE, Channel, Plan, Step
from tokenmux.scheduler.policy.instance_policy import InstanceView


class ScriptedPolicy:
    """Answers for a channel with the plan put into `plans`, and forgets it; leaves all other channels idle.

    A repeated step ends early at the first event of a type in `interrupt_on`.
    """

    name = "scripted"

    def __init__(self) -> None:
        self.plans: dict[Channel, Plan] = {}
        self.interrupt_on: tuple[type[Event], ...] = ()

    def on_event(self, event: Event, view: InstanceView) -> None:
        """Do nothing."""

    def plan(self, channel: Channel, view: InstanceView) -> Plan:
        return self.plans.pop(channel, IDLE)

    def interrupts(self, step: Step, event: Event, view: InstanceView) -> bool:
        return isinstance(event, self.interrupt_on)
