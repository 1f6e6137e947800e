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
    DoesNotFit,
    ErrorCode,
    InUse,
    NotFound,
    NotServable,
    TokenmuxError,
    Unavailable,
)
from tokenmux.core.event import ModelWanted, ResizeAsked
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.phases import DeviceState, Residency
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
                self._want(self._place_for(model), model, wanted=True)
            case Unload():
                for device in self._devices():
                    device.instance.check_unloadable(model)
                for device in self._devices():
                    self._want(device, model, wanted=False)
            case Pin(_, True):
                self._pin(model)
            case Pin():
                for device in self._devices():
                    if device.instance.models[model].pinned:
                        self._want(device, model, pinned=False)

    def _register(self, command: Register) -> None:
        model = AddModel(command.facts, command.path)
        for device in self._devices():
            device.say(model)
        self._node.pool.add_model(command.facts)
        self._node.models[command.facts.id] = model

    def _unregister(self, model: ModelId) -> None:
        for device in self._devices():
            device.instance.check_removable(model)
        self._node.pool.remove_model(model)
        for device in self._devices():
            device.say(RemoveModel(model))
        del self._node.models[model]
        self._node.refused.pop(model, None)

    def _want(
        self, device: NodeDevice, model: ModelId, *, wanted: bool | None = None, pinned: bool | None = None
    ) -> None:
        event = ModelWanted(self._clock.now_s(), model, wanted=wanted, pinned=pinned)
        self._node.pool.apply(device.index, event)

    def _place_for(self, model: ModelId) -> NodeDevice:
        """The device on which an operator's model is loaded: where it is already, or where least is asked
        for."""

        def rank(device: NodeDevice) -> tuple[bool, int, int]:
            instance = device.instance
            is_there = instance.models[model].residency in (Residency.RESIDENT, Residency.LOADING)
            return not is_there, len(instance.asked_models), len(instance.live_models)

        return min(self._choosable(), key=rank)

    def _pin(self, model: ModelId) -> None:
        """Pin a model on a device where that leaves room for the others. Raises DoesNotFit, or InUse."""
        if any(d.instance.models[model].pinned for d in self._choosable()):
            return
        self._want(self._place_to_pin(model, self._choosable()), model, pinned=True)

    def _place_to_pin(self, model: ModelId, devices: list[NodeDevice]) -> NodeDevice:
        refusal: TokenmuxError | None = None

        def rank(device: NodeDevice) -> tuple[bool, int]:
            instance = device.instance
            pinned = sum(m.facts.n_bytes for m in instance.models.values() if m.pinned)
            return model not in instance.resident_models, pinned

        for device in sorted(devices, key=rank):
            try:
                device.instance.check_pinnable(model)
            except (DoesNotFit, InUse) as error:
                refusal = refusal or error
            else:
                return device
        raise refusal or Unavailable("no device of the pool serves: try again when `pool status` shows one")

    def _choosable(self) -> list[NodeDevice]:
        """Devices on which a model may be loaded: those that serve, or else all that are not being
        drained."""
        pool = self._node.pool
        present = [d for d in self._devices() if d.index not in self._draining]
        return [d for d in present if d.index in pool.open] or present or list(self._devices())

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
        device.instance.check_resizable(command.arena_bytes)
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
        others = [d for d in self._choosable() if d.index != device.index]
        if not any(d.index not in self._draining and d.index != device.index for d in self._devices()):
            raise NotServable(
                f"device {device.index} is the last one that serves: add another one first (`pool add`)"
            )
        if device.index in self._adding:
            raise InUse(f"device {device.index} is being started: try again when it serves")
        for model in self._pins_to_move(device):
            self._check_room(model, device, others)
        for model in self._pins_to_move(device):
            self._want(self._place_to_pin(model, others), model, pinned=True)
            self._want(device, model, pinned=False)
        draining = self._draining.setdefault(device.index, _Draining([]))
        draining.tickets.append(ticket)
        draining.removing = draining.removing or removing
        device.state = DeviceState.DRAINING
        self._node.pool.drain(device.index)

    def _pins_to_move(self, device: NodeDevice) -> list[ModelId]:
        return [model.facts.id for model in device.instance.models.values() if model.pinned]

    def _check_room(self, model: ModelId, device: NodeDevice, others: list[NodeDevice]) -> None:
        """Raise DoesNotFit unless another device can keep a model that is pinned on this one."""
        try:
            self._place_to_pin(model, others)
        except TokenmuxError as error:
            raise DoesNotFit(
                f"{model} is pinned on device {device.index}, and no other device can keep it ({error}): "
                "unpin it first (`models unpin`), or add a device"
            ) from None

    def _undrain(self, device: NodeDevice) -> None:
        draining = self._draining.pop(device.index, None)
        if draining is None:
            return
        for ticket in draining.tickets:
            said = f"device {device.index} serves again: another operator asked for that"
            self._node.acknowledge(Acknowledged(ticket, said, ErrorCode.ENDED))
        device.state = DeviceState.SERVING if device.ready else DeviceState.STARTING
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
