"""What operators ask of a node: models registered, loaded and pinned, devices resized, added, drained and
removed.

A model may be on any device. Whoever loads or pins one does not say where; the node chooses.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmux.core.clock import Clock
from tokenmux.core.errors import (
    ErrorCode,
    InUse,
    NotFound,
    NotServable,
    TokenmuxError,
    Unavailable,
)
from tokenmux.core.event import ModelWanted, ResizeAsked
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.phases import DeviceState
from tokenmux.messages.commands import (
    AddDevice,
    DeviceCommand,
    DrainDevice,
    Load,
    ModelCommand,
    Pin,
    Register,
    RemoveDevice,
    Resize,
    Ticket,
    Unload,
    Unregister,
)
from tokenmux.messages.launches import AddModel, RemoveModel
from tokenmux.messages.reports import Acknowledged
from tokenmux.node.node_device import NodeDevice

if TYPE_CHECKING:  # the node has its operators
    from tokenmux.node.node import Node

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Draining:
    """A device that is being emptied, and who waits for that."""

    tickets: list[Ticket]
    removing: bool = False


class Operators:
    """Carries out what operators ask; see the module."""

    def __init__(self, node: "Node", clock: Clock) -> None:
        self._node = node
        self._clock = clock
        self._resizing: dict[InstanceId, Ticket] = {}
        self._adding: dict[InstanceId, Ticket] = {}
        self._draining: dict[InstanceId, _Draining] = {}

    # ── models ──────────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, ticket: Ticket, command: ModelCommand) -> Acknowledged:
        """Carry out a command about a model, and answer it."""
        try:
            self._change_model(command)
        except TokenmuxError as error:
            return Acknowledged(ticket, str(error), error.code)
        except Exception as error:
            if not isinstance(command, Register) or command.facts.id in self._node.models:
                raise
            logger.exception("%s cannot be registered", command.facts.id)
            said = f"{command.facts.id} cannot be registered: {error!r}"
            return Acknowledged(ticket, said, ErrorCode.NOT_SERVABLE)
        return Acknowledged(ticket)

    def _change_model(self, command: ModelCommand) -> None:
        node = self._node
        if isinstance(command, Register):
            self._register(command)
            return
        model = command.model
        if model not in node.models:
            raise NotFound(f"model {model} is not registered")
        match command:
            case Unregister():
                self._unregister(model)
            case Load():
                self._want(node.pool.load_target(model), model, wanted=True)
            case Unload():
                for device in self._devices():
                    device.instance.check_unloadable(model)
                for device in self._devices():
                    self._want(device.index, model, wanted=False)
            case Pin(_, True):
                self._want(node.pool.pin_target(model), model, pinned=True)
            case Pin():
                for device in self._devices():
                    if device.instance.models[model].pinned:
                        self._want(device.index, model, pinned=False)

    def _register(self, command: Register) -> None:
        model = AddModel(command.facts, command.path)
        for device in self._devices():
            device.say(model)
        self._node.pool.add_model(command.facts)
        self._node.models[command.facts.id] = model

    def _unregister(self, model: ModelId) -> None:
        self._node.pool.settle()  # what is to begin with the model begins before it is looked at
        for device in self._devices():
            device.instance.check_removable(model)
        self._node.pool.remove_model(model)
        for device in self._devices():
            device.say(RemoveModel(model))
        forgotten = self._node.models.pop(model)
        self._node.unmap_images(forgotten.facts)
        self._node.accusations.removed(model)
        self._node.grammars.model_removed(model)

    def _want(
        self, index: int, model: ModelId, *, wanted: bool | None = None, pinned: bool | None = None
    ) -> None:
        event = ModelWanted(self._clock.now_s(), model, wanted=wanted, pinned=pinned)
        self._node.pool.apply(index, event)

    def _devices(self) -> Iterator[NodeDevice]:
        return iter(list(self._node.devices.values()))

    # ── devices ─────────────────────────────────────────────────────────────────────────────────────────────

    def change_devices(self, ticket: Ticket, command: DeviceCommand) -> None:
        """Carry out a command about a device. It is answered now if it is refused, otherwise when it is
        done."""
        try:
            match command:
                case Resize():
                    self._resize(ticket, command)
                case AddDevice():
                    self._add(ticket, command)
                case DrainDevice(instance, undo):
                    if undo:
                        self._undrain(self._device(instance))
                        self._node.acknowledge(Acknowledged(ticket))
                    else:
                        self._drain(ticket, self._device(instance), removing=False)
                case RemoveDevice(instance):
                    self._drain(ticket, self._device(instance), removing=True)
        except TokenmuxError as error:
            self._node.acknowledge(Acknowledged(ticket, str(error), error.code))

    def _device(self, index: InstanceId) -> NodeDevice:
        device = self._node.devices.get(index)
        if device is None:
            known = ", ".join(str(known) for known in self._node.devices)
            raise NotFound(f"the pool has no device {index}; it has {known}")
        return device

    def _resize(self, ticket: Ticket, command: Resize) -> None:
        device = self._device(command.instance)
        if not device.ready:
            raise Unavailable(f"device {device.index} is {device.state.value}: try again when it serves")
        self._node.pool.check_resizable(device.index, command.arena_bytes)
        self._resizing[device.index] = ticket
        self._node.pool.apply(device.index, ResizeAsked(self._clock.now_s(), command.arena_bytes))

    def resized(self, device: NodeDevice, error: str, code: ErrorCode | None) -> None:
        """A device's arena was reallocated, or could not be."""
        ticket = self._resizing.pop(device.index, None)
        if ticket is not None:
            self._node.acknowledge(Acknowledged(ticket, error, code))

    def _add(self, ticket: Ticket, command: AddDevice) -> None:
        device = self._node.add_device(command.device)
        fault = self._node.start_device(device)
        if fault:
            self._node.remove_device(device)
            raise Unavailable(fault)
        self._adding[device.index] = ticket

    def started(self, device: NodeDevice) -> None:
        """A device serves now."""
        ticket = self._adding.pop(device.index, None)
        if ticket is not None:
            self._node.acknowledge(Acknowledged(ticket, instance=device.index))

    def start_failed(self, device: NodeDevice, detail: str) -> bool:
        """A device's executor has ended. If the device never served, it leaves the pool again."""
        ticket = self._adding.pop(device.index, None)
        if ticket is None:
            return False
        self._node.acknowledge(Acknowledged(ticket, detail, ErrorCode.UNAVAILABLE))
        self._node.pool.drain(device.index)
        self._node.pool.settle()
        if not self._node.pool.is_empty(device.index):  # what fits nowhere else came meanwhile
            self._node.pool.undrain(device.index)
            return False
        self._node.remove_device(device)
        return True

    def device_lost(self, device: NodeDevice) -> None:
        """A device's executor broke: what was asked of it is not done."""
        ticket = self._resizing.pop(device.index, None)
        if ticket is not None:
            said = f"device {device.index} broke while it was being resized: try again when it serves"
            self._node.acknowledge(Acknowledged(ticket, said, ErrorCode.UNAVAILABLE))

    def _drain(self, ticket: Ticket, device: NodeDevice, *, removing: bool) -> None:
        staying = [d for d in self._devices() if d.index not in self._draining and d is not device]
        if not staying:
            raise NotServable(
                f"device {device.index} is the last one that serves: add another one first (`pool add`)"
            )
        if device.index in self._adding:
            raise InUse(f"device {device.index} is being started: try again when it serves")
        if device.index not in self._draining:
            self._node.pool.check_drainable(device.index)
            self._draining[device.index] = _Draining([])
            device.state = DeviceState.DRAINING
            self._node.pool.drain(device.index)
        draining = self._draining[device.index]
        draining.tickets.append(ticket)
        draining.removing = draining.removing or removing

    def _undrain(self, device: NodeDevice) -> None:
        draining = self._draining.pop(device.index, None)
        if draining is None:
            return
        for ticket in draining.tickets:
            said = f"device {device.index} serves again: another operator asked for that"
            self._node.acknowledge(Acknowledged(ticket, said, ErrorCode.ENDED))
        device.state = self._node.state_of(device)
        self._node.pool.undrain(device.index)

    def look(self) -> None:
        """Say which devices are empty by now, and remove those that should go."""
        for index, draining in list(self._draining.items()):
            device = self._node.devices[index]
            if not self._node.pool.is_empty(index):
                continue
            device.state = DeviceState.DRAINED
            if draining.removing:
                if not device.instance.is_idle:
                    continue
                del self._draining[index]
                self._node.remove_device(device)
            for ticket in draining.tickets:
                self._node.acknowledge(Acknowledged(ticket))
            draining.tickets.clear()
