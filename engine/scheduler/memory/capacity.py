"""What could ever fit on an instance, however full it is now. The rest is refused at once, with both sizes in
the message."""

from collections.abc import Iterable, Sequence

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.facts import DeviceFacts, HostFacts, KvShape, ModelFacts
from tokenmux.core.sizes import show_size
from tokenmux.scheduler.memory.arena import EXTENT_ALIGNMENT, aligned


def kv_bytes(device: DeviceFacts, shape: KvShape, n_tokens: int) -> int:
    """Arena bytes of the slabs that hold `n_tokens` tokens of one request."""
    slab_bytes = aligned(device.slab_bytes)
    return -(-shape.blocks_for(n_tokens) // _blocks_per_slab(slab_bytes, shape)) * slab_bytes


def most_tokens(
    arena_bytes: int, slab_bytes: int, model: ModelFacts, pinned: Iterable[ModelFacts] = ()
) -> int:
    """The longest request of the model, in tokens, that an arena holds beside its weights and those of
    `pinned`; negative if there is no room for weights."""
    slab_bytes = aligned(slab_bytes)
    held = sum(weight_bytes(other) for other in pinned if other.id != model.id)
    room = arena_bytes - arena_bytes % EXTENT_ALIGNMENT - held - weight_bytes(model)
    n_blocks = room // slab_bytes * _blocks_per_slab(slab_bytes, model.kv)
    return n_blocks * model.kv.block_size


def _blocks_per_slab(slab_bytes: int, shape: KvShape) -> int:
    return max(1, (slab_bytes - shape.block_bytes + 1) // shape.block_bytes)


def weight_bytes(model: ModelFacts) -> int:
    return sum(aligned(image.n_bytes) for image in model.images)


def least_arena_bytes(
    device: DeviceFacts, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts] = ()
) -> int:
    """The smallest arena that holds the model and the KV of one request of `n_tokens`, beside the weights of
    `pinned`."""
    held = sum(weight_bytes(other) for other in pinned if other.id != model.id)
    return held + weight_bytes(model) + aligned(kv_bytes(device, model.kv, n_tokens))


def check_model(
    device: DeviceFacts, host: HostFacts, model: ModelFacts, pinned: Iterable[ModelFacts] = ()
) -> None:
    """Raise DoesNotFit unless the model can be served at all: its weights, one prefill chunk of KV, and
    its KV blocks must fit."""
    if 2 * model.kv.block_bytes > device.slab_bytes:
        raise DoesNotFit(
            f"{model.id}: a KV block of {show_size(model.kv.block_bytes)} needs slabs of at least "
            "twice that, and they "
            f"have {show_size(device.slab_bytes)}; raise device.slab"
        )
    if model.n_bytes > host.cache_bytes:
        raise DoesNotFit(
            f"{model.id} has {show_size(model.n_bytes)} of weights and the host cache "
            f"{show_size(host.cache_bytes)}; "
            f"raise host.cache"
        )
    check_request(device, model, min(model.max_context, device.prefill_chunk_tokens), pinned)


def check_request(
    device: DeviceFacts, model: ModelFacts, n_tokens: int, pinned: Iterable[ModelFacts] = ()
) -> None:
    """Raise DoesNotFit unless the model's weights and the KV of one request of `n_tokens` fit beside
    `pinned`."""
    held = sum(weight_bytes(other) for other in pinned if other.id != model.id)
    weights, kv = weight_bytes(model), kv_bytes(device, model.kv, n_tokens)
    room = device.arena_bytes - device.arena_bytes % EXTENT_ALIGNMENT - held
    if weights + kv <= room:
        return
    beside = f" beside {show_size(held)} of pinned weights" if held else ""
    if weights > room:
        raise DoesNotFit(
            f"{model.id} has {show_size(weights)} of weights and the device "
            f"{show_size(device.arena_bytes)}{beside}; "
            f"it needs a larger device budget or a smaller model"
        )
    raise DoesNotFit(
        f"{n_tokens} tokens of {model.id} need {show_size(kv)} of KV cache next to "
        f"{show_size(weights)} of weights, and the "
        f"device has {show_size(device.arena_bytes)}{beside}; ask for fewer tokens or raise the device budget"
    )


def check_pins(
    device: DeviceFacts,
    pinned: Sequence[ModelFacts],
    models: Iterable[ModelFacts],
    already: Sequence[ModelFacts] = (),
) -> None:
    """Raise DoesNotFit if pinning these would take from a model something it can do with only `already`
    pinned.

    That is its whole context if that fits now, and otherwise a chunk of a prompt. What never fitted does not
    speak against a pin.
    """
    room = device.arena_bytes - device.arena_bytes % EXTENT_ALIGNMENT
    for model in models:
        chunk = min(model.max_context, device.prefill_chunk_tokens)
        for n_tokens in (model.max_context, chunk):
            if least_arena_bytes(device, model, n_tokens, already) > room:
                continue
            try:
                check_request(device, model, n_tokens, pinned)
            except DoesNotFit as error:
                raise DoesNotFit(f"these pins would shut out another model: {error}") from None
            break
