"""The devices of the pool as the front knows them: with which a worker starts, what fits, and which of them
may go or change.

Operators change devices while the pool serves. What is accepted meanwhile has to fit whatever comes of it: a
device that is being drained or removed counts no longer, one that is being added not yet, and of one that is
being resized the smaller size counts.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from msgspec import structs

from tokenmux.core.errors import DoesNotFit, InUse, InvalidRequest, NotFound, NotServable
from tokenmux.core.facts import DeviceFacts, InstanceId, ModelFacts, ModelId
from tokenmux.core.sizes import show_size
from tokenmux.messages.reports import WorkerStatus
from tokenmux.messages.setups import DeviceSetup, PresentDevices


class Capacity(Protocol):
    """What could ever fit on a device, however full it is now."""

    def check_model(self, device: DeviceFacts, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit if the model can never be served beside the pinned ones."""
        ...

    def check_request(
        self, device: DeviceFacts, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]
    ) -> None:
        """Raise DoesNotFit if a request of `n_tokens` tokens, prompt and output, can never be served."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """What has to keep its place: models that are served, those of them that are pinned, and the tokens of
    the longest live request of each model."""

    served: Sequence[ModelFacts]
    pinned: Sequence[ModelFacts]
    longest: Mapping[ModelId, int]


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


Sizes = Mapping[InstanceId, Sequence[DeviceFacts]]
"""The devices on which requests may be placed, each with its possible sizes."""


class PoolDevices:
    """The present devices; see the module. On one event loop; only `present` may be read by other threads."""

    def __init__(self, setups: Sequence[DeviceSetup], capacity: Capacity) -> None:
        self._devices = {InstanceId(n): _Device(setup) for n, setup in enumerate(setups)}
        self._capacity = capacity
        self._coming: list[DeviceSetup] = []
        self._pin_homes: dict[ModelId, set[InstanceId]] = {}
        self.present = PresentDevices({}, 0)
        """With which a worker starts."""
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
            raise InvalidRequest(f"the pool has several devices ({listed}): say which one is meant")
        return next(iter(self._devices))

    def take(self, status: WorkerStatus) -> None:
        """Learn from a worker's status to which devices models are pinned."""
        homes: dict[ModelId, set[InstanceId]] = {}
        for device in status.devices:
            for model in device.pinned:
                homes.setdefault(model, set()).add(device.instance)
        self._pin_homes = homes

    # What fits

    def check_model(self, model: ModelFacts, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit unless some device can serve the model beside what is pinned there."""
        self._check(self._open(), list(pinned), model, None)

    def check_request(self, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts]) -> None:
        """Raise DoesNotFit unless some device can serve a request of `n_tokens` tokens, prompt and output."""
        self._check(self._open(), list(pinned), model, n_tokens)

    # Changes. Each raises before anything has changed; if the block in it fails, the change is undone.

    @contextmanager
    def adding(self, setup: DeviceSetup) -> Iterator[None]:
        """A device is being added; `added` says when it is there. Raises InvalidRequest if its GPU is taken
        meanwhile."""
        if setup.kind == "cuda" and any(
            other.kind == "cuda" and other.gpu == setup.gpu for other in self.taken
        ):
            raise InvalidRequest(f"GPU {setup.gpu or 0} is a device of the pool already: name another one")
        self._coming.append(setup)
        try:
            yield
        finally:
            self._coming.remove(setup)

    def added(self, instance: InstanceId, setup: DeviceSetup) -> None:
        """The worker has added a device, and numbered it."""
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
                self._check_all(
                    {**self._open(), instance: [coming]}, held, f"resizing device {instance}", remedy
                )
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
            raise InvalidRequest(f"device {instance} is not drained: there is nothing to undo")
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
            others = {other: sizes for other, sizes in self._open().items() if other != instance}
            if not others:
                raise NotServable(
                    f"device {instance} is the last one that serves: add another one before "
                    f"{doing} it (`tokenmux pool add`)"
                )
            remedy = "add a device (`tokenmux pool add`), or unpin or remove a model first"
            self._check_all(others, held, f"{doing} device {instance}", remedy)
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
        # Another value each time: a worker is started in a thread.
        setups = {instance: device.setup for instance, device in self._devices.items()}
        self.present = PresentDevices(setups, max(n_numbered, self.present.n_numbered))

    def _open(self) -> dict[InstanceId, list[DeviceFacts]]:
        return {n: device.sizes() for n, device in self._devices.items() if not device.closed}

    def _check_all(self, sizes: Sizes, held: Held, doing: str, remedy: str) -> None:
        """Raise DoesNotFit if something that is held has a place now, and none on these devices."""
        wanted = [
            *((model, None) for model in held.served),
            *((model, held.longest[model.id]) for model in held.served if model.id in held.longest),
        ]
        for model, n_tokens in wanted:
            pinned = [other for other in held.pinned if other.id != model.id]
            try:
                self._check(sizes, pinned, model, n_tokens)
            except DoesNotFit as error:
                if self._fits(self._open(), pinned, model, n_tokens):
                    raise DoesNotFit(f"{doing} would leave no room: {error}. Remedy: {remedy}") from None

    def _fits(
        self, sizes: Sizes, pinned: Collection[ModelFacts], model: ModelFacts, n_tokens: int | None
    ) -> bool:
        try:
            self._check(sizes, pinned, model, n_tokens)
        except DoesNotFit:
            return False
        return True

    def _check(
        self, sizes: Sizes, pinned: Collection[ModelFacts], model: ModelFacts, n_tokens: int | None
    ) -> None:
        """Raise DoesNotFit unless a device has room for the model, or for a request of `n_tokens`, in each of
        its possible sizes. The reason is that of the device with most room."""
        beside = self._pinned_to(sizes, pinned)
        refusals: list[tuple[int, DoesNotFit]] = []
        for instance, possible in sizes.items():
            try:
                for device in possible:
                    if n_tokens is None:
                        self._capacity.check_model(device, model, beside[instance])
                    else:
                        self._capacity.check_request(device, model, n_tokens, beside[instance])
                return
            except DoesNotFit as error:
                refusals.append((_room(possible, beside[instance]), error))
        _, reason = max(refusals, key=lambda refusal: refusal[0])
        if len(refusals) == 1:
            raise reason
        raise DoesNotFit(f"on none of {len(refusals)} devices: {reason}")

    def _pinned_to(self, sizes: Sizes, pinned: Iterable[ModelFacts]) -> dict[InstanceId, list[ModelFacts]]:
        """The pinned models by device: where the worker said, otherwise, largest first, where most room is
        left."""
        placed: dict[InstanceId, list[ModelFacts]] = {instance: [] for instance in sizes}
        homeless = []
        for model in pinned:
            homes = self._pin_homes.get(model.id, set()) & placed.keys()
            for instance in homes:
                placed[instance].append(model)
            if not homes:
                homeless.append(model)
        for model in sorted(homeless, key=lambda model: -model.n_bytes):
            roomiest = max(placed, key=lambda instance: _room(sizes[instance], placed[instance]))
            placed[roomiest].append(model)
        return placed


def _room(sizes: Iterable[DeviceFacts], pinned: Iterable[ModelFacts]) -> int:
    """Bytes that pinned models leave, at the smallest of these sizes."""
    return min(size.arena_bytes for size in sizes) - sum(model.n_bytes for model in pinned)
