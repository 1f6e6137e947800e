"""What a new node is told, and in which order: the models, the devices that are drained, the pins, then the
live requests.

If nodes break before they have taken all models, the next one is told one model at a time, to find the one
that breaks it.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from tokenmux.core.errors import TokenmuxError, Unavailable
from tokenmux.core.facts import InstanceId
from tokenmux.messages.commands import DrainDevice, Load, Pin, Register
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.pending_commands import Pending, PendingCommands
from tokenmux.server.front.pool_devices import PoolDevices
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.trials import Trials
from tokenmux.server.nodes.supervisor import Supervisor

logger = logging.getLogger(__name__)


class Handover:
    """Tells nodes of models, and keeps track of how far it is with the present one."""

    def __init__(
        self,
        supervisor: Supervisor,
        commands: PendingCommands,
        models: ServedModels,
        devices: PoolDevices,
        trials: Trials,
        changes: Changes,
        *,
        n_deaths: int,
        give_requests: Callable[[], None],
        on_done: Callable[[], None],
    ) -> None:
        """After `n_deaths` of nodes that had not taken all models, they are told one by one. `on_done`
        is called when a node has taken all of them."""
        self._supervisor = supervisor
        self._commands = commands
        self._models = models
        self._devices = devices
        self._trials = trials
        self._changes = changes
        self._n_deaths = n_deaths
        self._give_requests = give_requests
        self._on_done = on_done
        self._unanswered: set[Pending] = set()
        self._done = asyncio.Event()
        self._one_by_one: asyncio.Task[None] | None = None
        self._told: ServedModel | None = None
        """The model that the node is being told of, if models are told one at a time."""
        self._n_unfinished = 0
        """Number of nodes in a row that broke before they had taken all models."""

    @property
    def takes(self) -> bool:
        """True if there is a node that takes requests."""
        return self._supervisor.running and self._one_by_one is None

    def begin(self) -> None:
        """A new node has started."""
        self._done.clear()
        if self._n_unfinished >= self._n_deaths:
            self._one_by_one = asyncio.create_task(self._tell_one_by_one(), name="register models")
            return
        for served in self._models:
            if served.refusal is None:
                self.register(served)
        self._tell_the_rest()

    async def finished(self) -> None:
        """Wait until a node has taken all models, or `give_up` was called."""
        await self._done.wait()

    def give_up(self) -> None:
        """There will be no node."""
        self._done.set()

    def stop(self) -> None:
        """The node broke, or is no longer needed."""
        if self._one_by_one is not None:
            self._one_by_one.cancel()
            self._one_by_one = None

    def to_blame(self) -> ServedModel | None:
        """The model that the broken node was being told of, if it was told one at a time."""
        told, self._told = self._told, None
        if told is None and not self._done.is_set():
            self._n_unfinished += 1
        return told

    def register(self, served: ServedModel) -> Pending:
        """Tell the node of a model. If the node does not take it, the model is refused with its
        reason."""
        answer = self._commands.begin(Register(served.facts, str(served.path)))
        self._unanswered.add(answer)
        answer.add_done_callback(lambda done: self._registered(served, done))
        return answer

    def pin(self, served: ServedModel) -> None:
        """Tell the node to keep a model resident, if it is pinned and served."""
        if served.pinned and served.refusal is None:
            self._trials.sent(Load(served.facts.id))
            answer = self._commands.begin(Pin(served.facts.id, True))
            self._unanswered.add(answer)
            answer.add_done_callback(lambda done: self._pinned(served, done))

    async def _tell_one_by_one(self) -> None:
        for served in list(self._models):
            if served.refusal is None:
                self._told = served
                await asyncio.wait([self.register(served)])
        self._told = self._one_by_one = None
        self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        """Pins come after all models, so that each is judged by the room that it leaves to all of them, and
        after drains, so that none goes to a device that is drained."""
        for instance in self._devices.drained:
            answer = self._commands.begin(DrainDevice(instance))
            answer.add_done_callback(partial(self._drained, instance))
        for served in self._models:
            if served.refusal is None and not self._trials.holds(Load(served.facts.id)):
                self.pin(served)
        self._give_requests()
        if not self._unanswered:
            self._finish()
        self._trials.go_on()

    def _registered(self, served: ServedModel, answer: Pending) -> None:
        error = _refusal_in(answer)
        if error is not None:
            logger.error("the node does not take %s: %s", served.name, error)
            served.refusal = error
            self._changes.notify()
        self._taken(answer)

    def _pinned(self, served: ServedModel, answer: Pending) -> None:
        """A pin that the node refuses is not in force, and is not shown as if it were."""
        error = _refusal_in(answer)
        if error is not None:
            logger.error("%s is not pinned: %s", served.facts.id, error)
            served.pinned = False
            self._changes.notify()
        self._taken(answer)

    def _drained(self, instance: InstanceId, answer: Pending) -> None:
        """A device that the node does not drain serves again, and is not shown as if it did not."""
        error = _refusal_in(answer)
        if error is not None:
            logger.error("device %d is not drained: %s", instance, error)
            self._devices.reopened(instance)
            self._changes.notify()

    def _taken(self, answer: Pending) -> None:
        """The node has answered a registration or a pin."""
        self._unanswered.discard(answer)
        if not self._unanswered and self.takes:
            self._finish()

    def _finish(self) -> None:
        self._n_unfinished = 0
        self._supervisor.served()
        self._done.set()
        self._on_done()


def _refusal_in(answer: Pending) -> TokenmuxError | None:
    """Why the node refused, if it did; a node that broke has refused nothing."""
    error = answer.exception()
    return error if isinstance(error, TokenmuxError) and not isinstance(error, Unavailable) else None
