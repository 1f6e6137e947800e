"""One machine of the pool: the instances of all its devices, and what passes between them, the front and the
executors.

    front ──▶ receive ─┐                                 ┌─▶ executors: launches, bindings, stops
    executors ─▶ heard ┼─▶ pool, instances ─▶ effects ───┤
    their ends ─▶ ended┘                                 └─▶ emit(tokens, states, ends), at the next `pump`

One thread calls everything here; the caller provides the thread and the time (`loop.py` in a process of its
own, a virtual clock in tests). Nothing here waits, and nothing here touches a device or a weight: it decides,
tells, and is told. `tokenmux.simulator` is the other body of the same pool.
"""

import logging
from collections.abc import Callable
from math import inf

from tokenmux.core.clock import Clock
from tokenmux.core.effects import Effects
from tokenmux.core.errors import IntegrityError
from tokenmux.core.event import Cancelled
from tokenmux.core.facts import ImageId, InstanceId, ModelFacts, ModelId
from tokenmux.core.phases import DeviceState
from tokenmux.core.request import RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.messages.commands import (
    AddDevice,
    AskTrace,
    Cancel,
    DrainDevice,
    Load,
    Order,
    Pause,
    Pin,
    Register,
    RemoveDevice,
    Resize,
    Resume,
    Shutdown,
    Submit,
    Unload,
    Unregister,
)
from tokenmux.messages.completions import Completions
from tokenmux.messages.launches import AddModel
from tokenmux.messages.reports import Acknowledged, Alive, Broken, Report
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node.accusations import Accusations
from tokenmux.node.carried_out import CarriedOut
from tokenmux.node.checkups import Checkups
from tokenmux.node.executor_port import ExecutorFactory
from tokenmux.node.executor_reports import ExecutorReports
from tokenmux.node.grammars import Grammars
from tokenmux.node.host_memory import HostMemory
from tokenmux.node.lives import Lives
from tokenmux.node.node_device import NodeDevice, StrayReport
from tokenmux.node.node_requests import NodeRequests
from tokenmux.node.node_status import StatusReporter
from tokenmux.node.operator_commands import Operators
from tokenmux.node.positions import QueuePositions
from tokenmux.node.request_content import Content
from tokenmux.node.telemetry import Telemetry
from tokenmux.processes.restarts import RestartLimits
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.memory.host_kv import HostKv
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.registry import make_policy
from tokenmux.scheduler.pool.pool import Pool

logger = logging.getLogger(__name__)


class Node:
    """The devices of one machine; see the module. `observers` are called with the index of an instance, the
    time and all effects, before they are carried out."""

    def __init__(
        self,
        setup: NodeSetup,
        clock: Clock,
        factory: ExecutorFactory,
        emit: Callable[[list[Report]], None],
        limits: RestartLimits | None = None,
        policies: Callable[[str], InstancePolicy] = make_policy,
        memory: Callable[[int], HostMemory] = HostMemory,
    ) -> None:
        """Raises DoesNotFit if the machine does not have the memory for paged-out KV."""
        self.stopped = False
        self.observers: list[Callable[[int, float, Effects], None]] = []
        self.contents: dict[RequestId, Content] = {}
        self.devices: dict[InstanceId, NodeDevice] = {}
        """The devices of the pool, without those that were removed."""
        self.models: dict[ModelId, AddModel] = {}
        self._setup = setup
        self._clock = clock
        self._emit = emit
        self.memory = memory(setup.host_kv_bytes)
        self._cache = HostCache(setup.host.cache_bytes)
        self._host_kv = HostKv(setup.host_kv_bytes, max(d.facts.slab_bytes for d in setup.devices))
        self._out: list[Report] = []
        self._answers: list[Acknowledged] = []
        """To commands that change what a status shows: they follow one that shows it."""
        self._decided: dict[InstanceId, NodeDevice] = {}
        """Devices for which something was decided in this turn, in this order: they are told in it."""
        self._policies = policies
        numbered = _numbered(setup)
        instances = [self._make_instance(device or setup.devices[0]) for device in numbered]
        self.pool = Pool(instances, LeastLoaded(), self, clock)
        self.accusations = Accusations(self.pool, self.devices, self.contents, clock)
        self.grammars = Grammars(
            self.contents, self.accusations.hold, self.accusations.let_go, self.accusations.fail
        )
        self._lives = Lives(
            factory,
            self.memory.host_kv,
            clock,
            limits or RestartLimits(setup.max_restarts, setup.restart_window_s),
            models=self.models.values,
            n_devices=setup.n_sharing or len(setup.devices),
        )
        self._status = StatusReporter(
            self.pool, self.devices, self.accusations.refused, self._cache, self._host_kv, clock
        )
        self._telemetry = Telemetry(self.pool, clock)
        self._positions = [QueuePositions(instance, clock) for instance in self.pool.instances]
        self.requests = NodeRequests(
            self.contents, self.models, self.pool, self.accusations, self.grammars, setup, clock, self._say
        )
        self._operators = Operators(self, clock)
        self._effects = CarriedOut(
            self.pool,
            self.devices,
            self.memory,
            self._cache,
            self.requests,
            self.accusations,
            self.grammars,
            clock,
            self._say,
        )
        self._checkups = Checkups(self.pool, self.devices, self._effects, clock)
        self._reports = ExecutorReports(
            self.pool,
            self.requests,
            self.accusations,
            self.grammars,
            self._operators,
            self._kill,
            setup.silent_s,
            clock,
            self._say,
        )
        for number, device in enumerate(numbered):
            if device is None:
                self.pool.remove(number)
            else:
                self._take_in(InstanceId(number), device)

    def start(self) -> None:
        """Start the executors of all devices."""
        for device in self.devices.values():
            fault = self._lives.start(device)
            if fault:
                self._lives.broke(device, fault)

    @property
    def next_due_s(self) -> float | None:
        """When to `pump` next although nothing happens; None if there is no such time."""
        positions = (watched.due_s for watched in self._positions)
        all_due_s = (self._status.due_s, self._telemetry.due_s, self._lives.due_s, *positions)
        due_s = min((due_s for due_s in all_due_s if due_s is not None), default=inf)
        due_s = min(due_s, self.pool.next_expiry_s)
        return None if due_s == inf else due_s

    # ── what comes in from the front ────────────────────────────────────────────────────────────────────────

    def receive(self, order: Order) -> None:
        """Handle a command of the front. Errors in it are answered, never raised."""
        now_s = self._clock.now_s()
        ticket, command = order.ticket, order.command
        match command:
            case Submit():
                self.requests.submit(command)
            case Cancel(request, reason):
                self.pool.apply_to_request(Cancelled(now_s, request, reason))
            case Pause(request):
                self.accusations.pause(request)
            case Resume(request):
                self.accusations.resume(request)
            case AskTrace(last_s):
                self._out.append(self._telemetry.trace(ticket, last_s))
            case Shutdown():
                self.stop()
            case Register() | Unregister():
                self._out.append(self._operators.answer(ticket, command))
            case Load() | Unload() | Pin():
                self._answers.append(self._operators.answer(ticket, command))
            case Resize() | AddDevice() | DrainDevice() | RemoveDevice():
                self._operators.change_devices(ticket, command)

    def stop(self) -> None:
        """End once what there is to say has been said; live requests stay as they are."""
        self.stopped = True

    def close(self) -> None:
        """End all executors and give up the host memory."""
        for device in self.devices.values():
            if device.port is not None:
                device.port.kill()
        self.memory.close()

    # ── what comes in from the executors ────────────────────────────────────────────────────────────────────

    def heard(self, index: InstanceId, completions: Completions) -> None:
        """The executor of a device says something."""
        device = self.devices.get(index)
        if device is None or device.dying:
            return
        device.heard_s = self._clock.now_s()
        try:
            for completion in completions:
                self._reports.hear(device, completion)
        except StrayReport as error:
            self._kill(device, str(error))

    def ended(self, index: InstanceId, detail: str) -> None:
        """The process of an executor has ended: what was only on its device is lost."""
        device = self.devices.get(index)
        if device is None:
            return
        detail = device.dying or detail
        logger.error("device %d is lost: %s", index, detail)
        if self._operators.start_failed(device, detail):
            return
        self.accusations.device_broke(device)
        step = None if device.step is None else device.step.so_far()
        old = device.instance
        self.grammars.lost(index)
        self.pool.hold(index)
        replacement = self._make_instance(device.setup, old)
        device.lost(replacement)
        self.pool.lose(index, replacement, step)
        self._positions[index] = QueuePositions(replacement, self._clock)
        self._lives.broke(device, detail)
        self._operators.device_lost(device)

    def beat(self) -> None:
        """Report that this loop is alive; called once a second. Finds devices that hang, and books that are
        wrong, which ends the node."""
        for device in self.devices.values():
            if self._checkups.outlives_its_kill(device):
                self.broken(f"the executor of device {device.index} was killed and does not end")
            elif (hang := self._checkups.hang_of(device)) is not None:
                self._kill(device, hang)
        fault = self._checkups.wrong_books()
        if fault is not None:
            self.broken(fault)
            self.pump()
        elif not self.stopped:
            owned = self._owned_images()
            for device in self.devices.values():
                device.meet_an_image(owned)
            self._emit([Alive()])
            if all(device.ready for device in self.devices.values()):
                self._lives.prepare(is_quiet=self._checkups.is_idle)

    def broken(self, detail: str) -> None:
        """Report that the node cannot continue, and stop. The front submits the requests elsewhere."""
        self._out.append(Broken(detail))
        self.stopped = True

    # ── what goes out ───────────────────────────────────────────────────────────────────────────────────────

    def pump(self) -> None:
        """Start what the policies want next, and send what there is to report."""
        if not self.stopped:
            self._lives.start_due()
            self.pool.expire()
            self.accusations.try_next()
            self.pool.settle()
            self._operators.look()
            self.pool.settle()
        has_decided = bool(self._decided)
        for device in (*self._decided.values(), *self.devices.values()):
            device.flush()
        self._decided.clear()
        for instance, positions in zip(self.pool.instances, self._positions, strict=True):
            if instance.queue.version != positions.looked_at:
                self._out.extend(positions.report())
        use = self._telemetry.report()
        status = self._status.report(has_decided=has_decided, at_once=bool(self._answers))
        if use is not None:
            self._out.append(use)
        if status is not None:
            self._out.append(status)
        if self._answers:
            self._out.extend(self._answers)
            self._answers.clear()
        if self._out:
            out, self._out = self._out, []
            self._emit(out)

    # the pool's body
    def carry_out(self, index: int, effects: Effects) -> None:
        """Carry out and report what an event or a decision caused."""
        device = self.devices[InstanceId(index)]
        self._decided[device.index] = device
        for observer in self.observers:
            observer(index, self.pool.instances[index].now_s, effects)
        self._telemetry.note(index, effects)
        self._effects.carry_out(device, effects)

    # ── what operators may do ───────────────────────────────────────────────────────────────────────────────

    def add_device(self, setup: DeviceSetup) -> NodeDevice:
        """Add a device, whose executor is being started."""
        instance = self._make_instance(setup)
        index = InstanceId(len(self.pool.instances))
        self._positions.append(QueuePositions(instance, self._clock))
        device = self._take_in(index, setup, instance)
        if self.pool.add(instance, held=True) != index:
            raise IntegrityError("node: an instance was added to the pool without a device")
        return device

    def start_device(self, device: NodeDevice) -> str:
        """Start a device's executor. Returns why that is impossible, if it is."""
        return self._lives.start(device)

    def state_of(self, device: NodeDevice) -> DeviceState:
        """What the pool does with a device that is not being drained."""
        return self._lives.state_of(device)

    def remove_device(self, device: NodeDevice) -> None:
        """Take an empty device out of the pool, and end its executor."""
        self.pool.remove(device.index)
        if device.port is not None:
            device.port.kill()
        self.memory.forget_device(device.index)
        self._lives.forget(device)
        del self.devices[device.index]

    def unmap_images(self, facts: ModelFacts) -> None:
        """A model was removed: have executors give its images up, unless another model shares them. One that
        gets such an image again makes the model ready that has it by then."""
        owned = self._owned_images()
        for image in facts.images:
            if image.id not in owned:
                for index in self.memory.unmap(image.id):
                    self.devices[index].unmap(image.id)

    def acknowledge(self, answer: Acknowledged) -> None:
        """Answer a command, after a status that shows what it did."""
        self._answers.append(answer)

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _say(self, report: Report) -> None:
        self._out.append(report)

    def _make_instance(self, setup: DeviceSetup, before: Instance | None = None) -> Instance:
        """An instance for a device. What the one `before` has counted and learned goes on."""
        facts = setup.facts
        return Instance(
            facts,
            self._cache,
            self._policies(self._setup.policy),
            RooflineCost(facts, self._setup.host) if before is None else before.cost,
            service=self._setup.service,
            metrics=None if before is None else before.metrics,
            host_kv=self._host_kv,
        )

    def _take_in(self, index: InstanceId, setup: DeviceSetup, instance: Instance | None = None) -> NodeDevice:
        device = NodeDevice(
            index,
            setup,
            instance or self.pool.instances[index],
            self.memory,
            self.contents,
            self._clock,
        )
        self.devices[index] = device
        if instance is None:
            self.pool.hold(index)
        return device

    def _kill(self, device: NodeDevice, detail: str) -> None:
        logger.error("device %d is broken: %s", device.index, detail)
        self.pool.hold(device.index)  # or it would be asked for more, which requests were blamed for
        device.kill(detail)

    def _owned_images(self) -> set[ImageId]:
        """The images of the registered models. The host cache also has some of models that were removed."""
        return {image.id for model in self.models.values() for image in model.facts.images}


def _numbered(setup: NodeSetup) -> list[DeviceSetup | None]:
    """The devices by number; None for the number of one that was removed."""
    numbers = setup.instances or tuple(InstanceId(place) for place in range(len(setup.devices)))
    numbered: list[DeviceSetup | None] = [None] * max(setup.n_numbered, 1 + max(numbers))
    for number, device in zip(numbers, setup.devices, strict=True):
        numbered[number] = device
    return numbered
