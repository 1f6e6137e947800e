"""The devices of the pool as the front knows them: with which a node starts, and which of them may go or
change. What fits them is told by `tokenmux.server.front.fitting`.

Operators change devices while the pool serves. What is accepted meanwhile has to fit whatever comes of it: a
device that is being drained or removed counts no longer, one that is being added not yet, and of one that is
being resized the smaller size counts.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from msgspec import structs

from tokenmux.core.errors import InUse, InvalidRequest, NotFound, NotServable
from tokenmux.core.facts import DeviceFacts, InstanceId, ModelFacts
from tokenmux.core.phases import DeviceState
from tokenmux.core.sizes import show_size
from tokenmux.messages.reports import NodeStatus
from tokenmux.messages.setups import DeviceSetup, PresentDevices
from tokenmux.server.front.fitting import Capacity, Fitting, Held


@dataclass(slots=True)
class _Device:
    """A present device. `coming` is its size after the resize under way, `change` the change under way."""

    setup: DeviceSetup
    closed: bool = False
    coming: DeviceFacts | None = None
    change: str = ""

    def sizes(self) -> list[DeviceFacts]:
        """The sizes that it has now or may have in a moment."""
        return [self.setup.facts] if self.coming is None else [self.setup.facts, self.coming]


class PoolDevices:
    """The present devices; see the module. On one event loop; only `present` may be read by other threads."""

    def __init__(self, setups: Sequence[DeviceSetup], capacity: Capacity) -> None:
        self._devices = {InstanceId(n): _Device(setup) for n, setup in enumerate(setups)}
        self._fitting = Fitting(capacity)
        self._coming: list[DeviceSetup] = []
        self._out: set[InstanceId] = set()
        """Devices that do not serve, and may not for long."""
        self.present = PresentDevices({}, 0)
        """With which a node starts."""
        self._renew(len(setups))

    def __len__(self) -> int:
        return len(self._devices)

    def setup(self, instance: InstanceId) -> DeviceSetup:
        """Raises NotFound."""
        return self._find(instance).setup

    @property
    def drained(self) -> tuple[InstanceId, ...]:
        """Devices on which nothing is to be placed."""
        return tuple(instance for instance, device in self._devices.items() if device.closed)

    @property
    def taken(self) -> list[DeviceSetup]:
        """The devices that the pool has or is about to have."""
        return [*(device.setup for device in self._devices.values()), *self._coming]

    def only(self) -> InstanceId:
        """The number of the only device. Raises InvalidRequest if there are several."""
        if len(self._devices) > 1:
            listed = ", ".join(map(str, self._devices))
            raise InvalidRequest(
                f"the pool has several devices ({listed}): say which one is meant", field="instance"
            )
        return next(iter(self._devices))

    def take(self, status: NodeStatus) -> None:
        """Learn from a node's status to which devices models are pinned, and which devices are out."""
        self._fitting.take(status)
        self._out = {device.instance for device in status.devices if device.state is DeviceState.OUT}

    # What fits

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit unless some device can serve the model beside what is pinned there."""
        self._fitting.check(self._open(), list(pinned), model, None)

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit unless some device can serve a request of `n_tokens` tokens, prompt and output."""
        self._fitting.check(self._open(), list(pinned), model, n_tokens)

    # Changes. Each raises before anything has changed; if the block in it fails, the change is undone.

    @contextmanager
    def adding(self, setup: DeviceSetup) -> Iterator[None]:
        """A device is being added; `added` says when it is there. Raises InvalidRequest if its GPU is taken
        meanwhile."""
        if setup.kind == "cuda" and any(
            other.kind == "cuda" and other.gpu == setup.gpu for other in self.taken
        ):
            raise InvalidRequest(
                f"GPU {setup.gpu or 0} is a device of the pool already: name another one", field="gpu"
            )
        self._coming.append(setup)
        try:
            yield
        finally:
            self._coming.remove(setup)

    def added(self, instance: InstanceId, setup: DeviceSetup) -> None:
        """The node has added a device, and numbered it."""
        self._devices[instance] = _Device(setup)
        self._renew(instance + 1)

    @contextmanager
    def resizing(self, instance: InstanceId, arena_bytes: int, held: Held) -> Iterator[None]:
        """A resize is under way. When the block ends without an error, it is done.

        Raises NotFound, InUse while the device changes otherwise, DoesNotFit.
        """
        with self._changing(instance, "resized") as device:
            coming = replace(device.setup.facts, arena_bytes=arena_bytes)
            if not device.closed:
                remedy = f"ask for more than {show_size(arena_bytes)}, or add a device (`tokenmux pool add`)"
                now = self._open()
                then = {**now, instance: [coming]}
                self._fitting.check_change(now, then, held, f"resizing device {instance}", remedy)
            device.coming = coming
            try:
                yield
                device.setup = structs.replace(device.setup, facts=coming)
                self._renew()
            finally:
                device.coming = None

    @contextmanager
    def draining(self, instance: InstanceId, held: Held) -> Iterator[None]:
        """Nothing is placed on a device any longer.

        Raises NotFound, InUse while the device changes otherwise, NotServable for the last one, DoesNotFit.
        """
        with self._changing(instance, "drained") as device, self._closed(instance, device, held, "draining"):
            yield

    @contextmanager
    def removing(self, instance: InstanceId, held: Held) -> Iterator[None]:
        """A device is being removed. When the block ends without an error, it is gone. Raises as
        `draining`."""
        with self._changing(instance, "removed") as device, self._closed(instance, device, held, "removing"):
            yield
            del self._devices[instance]
            self._renew()

    def reopening(self, instance: InstanceId) -> None:
        """Check that a drain can be undone. Raises NotFound, InvalidRequest if there is none, InUse while
        the device is removed."""
        device = self._find(instance)
        if not device.closed:
            raise InvalidRequest(f"device {instance} is not drained: there is nothing to undo", field="undo")
        if device.change not in ("", "drained"):
            raise InUse(f"device {instance} is being {device.change} at this moment: it cannot be undone")

    def reopened(self, instance: InstanceId) -> None:
        """A device takes requests again."""
        if instance in self._devices:
            self._devices[instance].closed = False

    @contextmanager
    def _changing(self, instance: InstanceId, change: str) -> Iterator[_Device]:
        device = self._find(instance)
        if device.change:
            raise InUse(
                f"device {instance} is being {device.change} at this moment: try again when that is done"
            )
        device.change = change
        try:
            yield device
        finally:
            device.change = ""

    @contextmanager
    def _closed(self, instance: InstanceId, device: _Device, held: Held, doing: str) -> Iterator[None]:
        was_closed = device.closed
        if not was_closed:
            now = self._open()
            others = {n: sizes for n, sizes in now.items() if n != instance and n not in self._out}
            if not others:
                raise NotServable(
                    f"device {instance} is the last one that serves: add another one before "
                    f"{doing} it (`tokenmux pool add`)"
                )
            remedy = "add a device (`tokenmux pool add`), or unpin or remove a model first"
            self._fitting.check_change(now, others, held, f"{doing} device {instance}", remedy)
        device.closed = True
        try:
            yield
        except BaseException:
            device.closed = was_closed
            raise

    def _find(self, instance: InstanceId) -> _Device:
        if instance not in self._devices:
            listed = ", ".join(map(str, self._devices))
            raise NotFound(f"there is no device {instance}: the pool has {listed}")
        return self._devices[instance]

    def _renew(self, n_numbered: int = 0) -> None:
        # Another value each time: a node is started in a thread.
        setups = {instance: device.setup for instance, device in self._devices.items()}
        self.present = PresentDevices(setups, max(n_numbered, self.present.n_numbered))

    def _open(self) -> dict[InstanceId, list[DeviceFacts]]:
        return {n: device.sizes() for n, device in self._devices.items() if not device.closed}
