"""The node's side of the front: one node at a time, what it is sent, and who hears what it reports.

    supervisor   starts nodes and replaces those that break   handover   tells a new one what there is
    outage       says when requests wait for one in vain        trials     tries alone what may break them
    standstill   says when nothing moves
    requests     live requests                                  verdicts   refuses what did
    commands     that a node answers

Here the parts meet; each knows only those that it is given.
"""

from collections.abc import Awaitable, Callable

from tokenmux.core.errors import ProcessFailed, TokenmuxError, Unavailable
from tokenmux.core.phases import DeviceState, PhaseChanged, Residency
from tokenmux.core.span import Span
from tokenmux.messages.commands import Load
from tokenmux.messages.reports import (
    Acknowledged,
    Finished,
    NodeStatus,
    NodeUse,
    PromptPooled,
    PromptTold,
    Report,
    Tokens,
    Traced,
)
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.handover import Handover
from tokenmux.server.front.limits import Limits
from tokenmux.server.front.live_request import LiveRequest
from tokenmux.server.front.live_requests import LiveRequests
from tokenmux.server.front.node_totals import NodeTotals
from tokenmux.server.front.pending_commands import OperatorCommand, PendingCommands
from tokenmux.server.front.pool_devices import PoolDevices
from tokenmux.server.front.queue_pace import QueuePace
from tokenmux.server.front.request_counters import RequestCounters
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.standstill import Standstill
from tokenmux.server.front.tenants import QueuePlaces
from tokenmux.server.front.traffic import TrafficRecorder
from tokenmux.server.front.trials import Suspected, Trials
from tokenmux.server.front.usage import Usage
from tokenmux.server.front.verdicts import Verdicts
from tokenmux.server.nodes.node_protocol import NodeFactory
from tokenmux.server.nodes.outage import Outage
from tokenmux.server.nodes.supervisor import Supervisor


class NodeSide:
    """The node's side of the front; see the module. `start`, then `close`. Everything runs on the event
    loop."""

    def __init__(
        self,
        factory: NodeFactory,
        models: ServedModels,
        devices: PoolDevices,
        places: QueuePlaces,
        changes: Changes,
        limits: Limits,
        pace: QueuePace,
        *,
        recorder: TrafficRecorder | None,
        counters: RequestCounters,
        totals: NodeTotals,
        on_given_up: Callable[[TokenmuxError], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        """`counters` are told how requests end, `totals` what nodes count. `on_given_up` is called if there
        will be no node at all."""
        self.status: NodeStatus | None = None
        """The latest status; None before the first and while there is no node."""
        self.given_up: TokenmuxError | None = None
        """Why there will be no node any longer, also when the server has stopped."""
        self.usage = Usage()
        self._totals = totals
        self._models = models
        self._devices = devices
        self._changes = changes
        self._supervisor = Supervisor(
            lambda on_reports: factory(on_reports, devices=devices.present),
            on_report=self._receive,
            on_broken=self._broke,
            on_started=lambda: self._handover.begin(),
            on_down=lambda error: self.outage.begin(error),
            on_given_up=on_given_up,
            limits=limits.restarts,
            patience=limits.patience,
            clock=clock,
            sleep=sleep,
        )
        self._commands = PendingCommands(self._supervisor.send)
        self._trials = Trials(
            limits.deaths_per_request,
            limits.trial_s,
            may_give=lambda: self._handover.takes,
            give=self._give,
            sleep=sleep,
        )
        self.requests = LiveRequests(
            self._supervisor.send,
            self._trials,
            places,
            pace=pace,
            takes=lambda: self._handover.takes,
            on_proven=self._proven,
            buffer_tokens=limits.buffer_tokens,
            unread_s=limits.unread_s,
            recorder=recorder,
            counters=counters,
            clock=clock,
        )
        self.outage = Outage(
            limits.outage_s,
            on_change=changes.notify,
            on_refusal=self.requests.fail_all,
            clock=clock,
            sleep=sleep,
        )
        self._handover = Handover(
            self._supervisor,
            self._commands,
            models,
            devices,
            self._trials,
            changes,
            n_deaths=limits.deaths_per_request,
            give_requests=self.requests.give_all,
            on_done=self._taken,
        )
        self._verdicts = Verdicts(models, self.requests, changes)
        self.standstill = Standstill(
            limits.still_s,
            n_waiting=self.requests.n_waiting,
            on_change=changes.notify,
            clock=clock,
            sleep=sleep,
        )
        self._serves: bool | None = None
        """True if a device of the present node serves; None before it has said so."""
        self._started = False

    @property
    def running(self) -> bool:
        return self._supervisor.running

    @property
    def n_restarts(self) -> int:
        return self._supervisor.n_restarts

    async def start(self) -> None:
        """Start the first node, and wait until one has taken all models and a device serves, or `give_up`
        was called. Raises ProcessFailed if no device can be started."""
        await self._supervisor.start()
        await self._handover.finished()
        while self._serves is False and self.given_up is None:
            if self.status is not None and all(d.state is DeviceState.OUT for d in self.status.devices):
                raise _none_serves(self.status)
            await self._changes.after(self._changes.version)
        self._started = True
        self.standstill.begin()

    def give_up(self, error: TokenmuxError) -> None:
        """End all requests and commands; `start` stops waiting."""
        self.given_up = error
        self.requests.fail_all(error)
        self._commands.fail(error)
        self._handover.give_up()
        self._changes.notify()

    async def close(self) -> None:
        """Stop the node; nothing is received from it afterwards. Call `give_up` first."""
        self.outage.close()
        self.standstill.close()
        self._trials.stop()
        self._handover.stop()
        await self._supervisor.close()
        self._commands.fail(Unavailable("the server has stopped"))

    async def command(self, command: OperatorCommand) -> Acknowledged:
        """Have an operator's command carried out. Raises the node's error, or Unavailable without a
        node."""
        self._check_running()
        answer = await self._commands.begin(command)
        assert isinstance(answer, Acknowledged)
        return answer

    async def trace(self, last_s: float) -> tuple[Span, ...]:
        """What the node remembers of the last `last_s` seconds. Raises Unavailable without a node."""
        self._check_running()
        return await self._commands.trace(last_s)

    def introduce(self, served: ServedModel) -> None:
        """Tell the node of a model that was refused before, and of its pin."""
        self._handover.register(served)
        self._handover.pin(served)

    def dismiss(self, served: ServedModel) -> None:
        """A model is no longer served: it is not suspected of anything either, nor will be its successor."""
        self._trials.forget(Load(served.facts.id))

    def _check_running(self) -> None:
        if not self.running:
            raise Unavailable("there is no node at this moment: try again when `pool status` shows one")

    def _receive(self, report: Report) -> None:
        self.standstill.hear(report)
        match report:
            case Tokens() | PromptTold() | PromptPooled() | PhaseChanged() | Finished():
                self.requests.deliver(report)
            case NodeStatus():
                self.status = report
                self._totals.take(report)
                self._devices.take(report)
                self._look_at_devices(report)
                for model in report.models:
                    if model.pinned and model.residency is Residency.RESIDENT:
                        self._trials.progressed(Load(model.model))
                self._changes.notify()
            case NodeUse():
                self.usage.take(report)
                self._totals.take(report)
                self._changes.notify()
            case Acknowledged() | Traced():
                self._commands.answered(report)

    def _taken(self) -> None:
        """The node has taken all models."""
        if self._serves is not False:
            self.outage.serves()

    def _look_at_devices(self, status: NodeStatus) -> None:
        """A pool of which no device serves is as good as none. Before the first one serves, `start` waits."""
        before, self._serves = self._serves, any(d.state is DeviceState.SERVING for d in status.devices)
        if self._serves and before is False:
            self.outage.serves()
        elif not self._serves and before is not False and self._started:
            self.outage.missing(_none_serves(status))

    def _give(self, subject: Suspected) -> None:
        """Give the node a request, or a pinned model, whose turn has come."""
        if not isinstance(subject, Load):
            self.requests.give(self.requests.find(subject))
        elif subject.model in self._models:
            self._handover.pin(self._models.find(subject.model))

    def _proven(self, live: LiveRequest) -> None:
        """The present node made progress with a request."""
        self._trials.progressed(live.id)
        self._verdicts.proven(live.model)
        self.outage.end()
        if self._trials.trying:
            self._trials.go_on()

    def _broke(self) -> None:
        """Settle requests that have ended in any case; the others wait for the next node."""
        self.status = self._serves = None
        self.usage = Usage()
        self._totals.node_broke()
        self._trials.stop()
        self._handover.stop()
        self._changes.notify()
        broken = ProcessFailed("the node broke and is being restarted: try again in a moment")
        self._commands.fail(broken)
        if self._supervisor.has_spoken:
            self._blame()  # before requests are forgotten whose clients have left: they may be the cause
        else:
            self._trials.spared()
        self.requests.node_broke()
        self.outage.missing(
            Unavailable("the node broke and its successor does not serve yet: try again in a moment")
        )

    def _blame(self) -> None:
        """Find out over what the node broke."""
        told = self._handover.to_blame()
        if told is not None:
            self._verdicts.refuse(told, "a node broke each time when it was told of this model")
        guilty = self._trials.died()
        if guilty is not None:
            self._verdicts.convict(guilty)


def _none_serves(status: NodeStatus) -> ProcessFailed:
    """Why no device serves."""
    states = "; ".join(
        f"device {device.instance} is {device.state.value}" + (f" ({device.fault})" if device.fault else "")
        for device in status.devices
    )
    return ProcessFailed(f"no device serves: {states or 'there is none'}. Try again in a moment")
