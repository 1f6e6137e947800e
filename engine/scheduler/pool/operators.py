"""What operators may change about the devices of a pool: where a model is loaded or pinned, and what stands
in the way of draining, removing or resizing a device.

Everything is checked before anything changes. A model counts as served by an instance that has room for its
weights and one chunk of a prompt beside what is pinned there.
"""

from collections.abc import Iterable
from math import inf

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.facts import ModelFacts, ModelId
from tokenmux.core.phases import Residency
from tokenmux.scheduler.memory.capacity import check_pins, weight_bytes
from tokenmux.scheduler.pool.members import Members


def load_target(members: Members, facts: ModelFacts) -> int:
    """The instance that loads a model for an operator: where it is nearest, otherwise where most room is not
    pinned. Raises DoesNotFit if no instance serves it."""
    serving = [index for index in _staying(members) if _serves(members, index, facts)]
    if not serving:
        raise DoesNotFit(f"no device that stays in the pool has room for {facts.id}: add a larger one")
    return min(serving, key=lambda index: _distance(members, index, facts))


def pin_target(members: Members, facts: ModelFacts) -> int:
    """The instance that pins a model: where it is pinned already, otherwise the nearest one on which that
    leaves every model its room. Raises DoesNotFit if there is none, InUse if the only one is being
    resized."""
    staying = _staying(members)
    target = _pin_targets(members, [facts], staying).get(facts.id)
    if target is None:
        if len(staying) == 1:  # it says what stands in the way there
            members.instances[staying[0]].check_pinnable(facts.id)
        raise _no_room_to_pin(facts)
    return target


def pins_elsewhere(members: Members, index: int) -> dict[ModelId, int]:
    """For each model that is pinned on this instance, the one that can pin it instead, if there is one."""
    return _pin_targets(members, _pinned(members, index), _staying(members, but=index))


def check_drainable(members: Members, index: int) -> None:
    """Raise DoesNotFit if a model, or a pin, would find no room on the other instances."""
    movable = pins_elsewhere(members, index)
    for facts in _pinned(members, index):
        if facts.id not in movable:
            raise _no_room_to_pin(facts)
    others = _staying(members, but=index)
    for model in members.instances[index].models.values():
        serves = _serves(members, index, model.facts)
        if serves and not any(_serves(members, other, model.facts) for other in others):
            raise DoesNotFit(
                f"no other device has room for {model.facts.id}: remove the model first, or add a device"
            )


def check_resizable(members: Members, index: int, arena_bytes: int) -> None:
    """Raise InUse, InvalidRequest or DoesNotFit if the arena cannot be given that size. A model without
    requests here needs room on only one instance."""
    others = _staying(members, but=index)
    models = members.instances[index].models.values()
    elsewhere = {m.facts.id for m in models if any(_serves(members, other, m.facts) for other in others)}
    members.instances[index].check_resizable(arena_bytes, elsewhere)


def _staying(members: Members, but: int | None = None) -> list[int]:
    """Instances that are not being drained; held ones will serve again."""
    return [index for index in members.present if index not in members.closed and index != but]


def _serves(members: Members, index: int, facts: ModelFacts) -> bool:
    chunk = min(facts.max_context, members.instances[index].device.prefill_chunk_tokens)
    return members.most_tokens(index, facts) >= chunk


def _pinned(members: Members, index: int) -> list[ModelFacts]:
    models = members.instances[index].models
    return [models[model].facts for model in members.instances[index].asked_models if models[model].pinned]


def _distance(members: Members, index: int, facts: ModelFacts) -> tuple[bool, float, float]:
    """For sorting: open instances first, then by where the weights are, then by room that is not pinned."""
    instance = members.instances[index]
    model = instance.models.get(facts.id)
    near = {Residency.RESIDENT: 0.0, Residency.LOADING: 1.0}.get(model.residency, inf) if model else inf
    free = instance.device.arena_bytes - sum(weight_bytes(pinned) for pinned in _pinned(members, index))
    return index not in members.open, near, -free


def _pin_targets(
    members: Members, models: Iterable[ModelFacts], candidates: Iterable[int]
) -> dict[ModelId, int]:
    """Find each model an instance, one after another, beside what is pinned there and the models before.
    Models that find none are left out."""
    pinned = {index: _pinned(members, index) for index in candidates}
    targets: dict[ModelId, int] = {}
    for facts in models:
        by_distance = sorted(pinned, key=lambda index: _distance(members, index, facts))
        target = next((i for i in by_distance if facts.id in {p.id for p in pinned[i]}), None)
        if target is None:
            target = next((i for i in by_distance if _can_pin(members, i, facts, pinned[i])), None)
        if target is not None:
            targets[facts.id] = target
            pinned[target].append(facts)
    return targets


def _no_room_to_pin(facts: ModelFacts) -> DoesNotFit:
    return DoesNotFit(
        f"no device that stays in the pool has room to pin {facts.id}: unpin a model, or add a device"
    )


def _can_pin(members: Members, index: int, facts: ModelFacts, already: list[ModelFacts]) -> bool:
    instance = members.instances[index]
    if instance.resize_bytes is not None or not _serves(members, index, facts):
        return False
    others = [model.facts for model in instance.models.values()]
    try:
        check_pins(instance.device, [*already, facts], [*others, facts], already)
        instance.check_room_of_requests([*already, facts])
    except DoesNotFit:
        return False
    return True
