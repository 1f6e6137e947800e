"""What fits a pool: on which of its devices, beside the models that are pinned there."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.facts import DeviceFacts, InstanceId, ModelFacts, ModelId
from tokenmux.messages.reports import NodeStatus

Sizes = Mapping[InstanceId, Sequence[DeviceFacts]]
"""The devices on which requests may be placed, each with its possible sizes."""


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


class Fitting:
    """Says what fits; see the module."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._pin_homes: dict[ModelId, set[InstanceId]] = {}

    def take(self, status: NodeStatus) -> None:
        """Learn from a node's status to which devices models are pinned."""
        homes: dict[ModelId, set[InstanceId]] = {}
        for device in status.devices:
            for model in device.pinned:
                homes.setdefault(model, set()).add(device.instance)
        self._pin_homes = homes

    def check_change(self, now: Sizes, then: Sizes, held: Held, doing: str, remedy: str) -> None:
        """Raise DoesNotFit if something that is held has a place on the devices of `now`, and none on those
        of `then`. `doing` says what would change them, and `remedy` what to do instead."""
        wanted = [
            *((model, None) for model in held.served),
            *((model, held.longest[model.id]) for model in held.served if model.id in held.longest),
        ]
        for model, n_tokens in wanted:
            pinned = [other for other in held.pinned if other.id != model.id]
            try:
                self.check(then, pinned, model, n_tokens)
            except DoesNotFit as error:
                if self._fits(now, pinned, model, n_tokens):
                    raise DoesNotFit(f"{doing} would leave no room: {error}. Remedy: {remedy}") from None

    def _fits(
        self, sizes: Sizes, pinned: Collection[ModelFacts], model: ModelFacts, n_tokens: int | None
    ) -> bool:
        try:
            self.check(sizes, pinned, model, n_tokens)
        except DoesNotFit:
            return False
        return True

    def check(
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
        """The pinned models by device: where the node said, otherwise, largest first, where most room is
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
