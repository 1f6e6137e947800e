"""What operators do with the devices of the pool: add, drain, remove, resize.

Every change is completed even if its caller leaves, and refused before anything has changed if it would leave
something without room (`tokenmux.server.front.pool_devices`). The node checks again what only it knows.
"""

import asyncio

from tokenmux.core.errors import InternalError, InvalidRequest
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.messages.commands import AddDevice, DrainDevice, RemoveDevice, Resize
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.device_source import DeviceSource, WantedDevice
from tokenmux.server.front.fitting import Held
from tokenmux.server.front.node_side import NodeSide
from tokenmux.server.front.pool_devices import PoolDevices
from tokenmux.server.front.registration import Registration
from tokenmux.server.front.served_models import ServedModels
from tokenmux.server.front.undertakings import Undertakings


class DeviceChanges:
    """Changes the devices of the pool; see the module.

    All methods raise NotFound for an unknown device, InUse while the device is being changed otherwise,
    DoesNotFit, and Unavailable without a node.
    """

    def __init__(
        self,
        devices: PoolDevices,
        source: DeviceSource,
        models: ServedModels,
        registration: Registration,
        node: NodeSide,
        undertakings: Undertakings,
        changes: Changes,
    ) -> None:
        self._devices = devices
        self._source = source
        self._models = models
        self._registration = registration
        self._node = node
        self._changes = changes
        self._undertakings = undertakings

    async def add(self, wanted: WantedDevice) -> InstanceId:
        """Add a device. Returns its number once it serves. Raises InvalidRequest, and ConfigError, if the
        machine has no such device."""
        return await self._undertakings.complete(self._add(wanted), "add a device")

    async def drain(self, instance: InstanceId, *, undo: bool = False) -> None:
        """Place nothing on a device any longer; returns when it is empty. With `undo`, let it serve again,
        even before that. Raises InvalidRequest for an undo without a drain, NotServable for the last
        device."""
        if undo:
            await self._undertakings.complete(self._reopen(instance), f"undo draining device {instance}")
        else:
            await self._undertakings.complete(self._drain(instance), f"drain device {instance}")

    async def remove(self, instance: InstanceId) -> None:
        """Drain a device and take it out of the pool. Raises NotServable for the last device."""
        await self._undertakings.complete(self._remove(instance), f"remove device {instance}")

    async def resize(self, arena_bytes: int, instance: int | None = None) -> int:
        """Give a device an arena of `arena_bytes`, once it is empty. Returns the size afterwards.

        Its requests wait during the resize, or move, and then continue. Raises InvalidRequest, also if no
        device is named and there are several.
        """
        if arena_bytes < 1:
            raise InvalidRequest(
                "arena_bytes 0: a device needs memory; give its new size in bytes", field="arena_bytes"
            )
        which = self._devices.only() if instance is None else InstanceId(instance)
        await self._undertakings.complete(self._resize(which, arena_bytes), f"resize device {which}")
        return self._devices.setup(which).facts.arena_bytes

    async def _add(self, wanted: WantedDevice) -> InstanceId:
        setup = await asyncio.to_thread(self._source.make, wanted, self._devices.taken)
        with self._devices.adding(setup):
            answer = await self._node.command(AddDevice(setup))
            if answer.instance is None:
                raise InternalError("the node added a device and did not say which")
            self._devices.added(answer.instance, setup)
        self._registration.reconsider()
        return answer.instance

    async def _drain(self, instance: InstanceId) -> None:
        with self._devices.draining(instance, self._held()):
            await self._node.command(DrainDevice(instance))
        self._changes.notify()

    async def _reopen(self, instance: InstanceId) -> None:
        self._devices.reopening(instance)
        await self._node.command(DrainDevice(instance, undo=True))
        self._devices.reopened(instance)
        self._registration.reconsider()

    async def _remove(self, instance: InstanceId) -> None:
        with self._devices.removing(instance, self._held()):
            await self._node.command(RemoveDevice(instance))
        self._changes.notify()

    async def _resize(self, instance: InstanceId, arena_bytes: int) -> None:
        setup = self._devices.setup(instance)
        self._source.check_resize(setup, arena_bytes)
        with self._devices.resizing(instance, arena_bytes, self._held()):
            await self._node.command(Resize(arena_bytes, instance))
        self._registration.reconsider()

    def _held(self) -> Held:
        """What must not lose its place."""
        longest: dict[ModelId, int] = {}
        for live in self._node.requests:
            if not live.closed:
                n_tokens = live.request.n_prompt + live.request.max_tokens
                longest[live.model] = max(longest.get(live.model, 0), n_tokens)
        served = [served.facts for served in self._models if served.refusal is None]
        return Held(served, self._models.pinned(), longest)
