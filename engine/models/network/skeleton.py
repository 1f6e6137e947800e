"""A model without weights, built once and kept: binding it to weights in the arena takes milliseconds.

The skeleton is transformers' own model on the meta device, with our attention function. Binding replaces the
entries of each module's parameters by views into an image anywhere in memory. Unbinding restores the empty
ones, so that an evicted model cannot be run by mistake and nothing keeps the memory alive. The device copies
the image there; the manifest (`image.py`) says what is in it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tokenmux.core.errors import BadCheckpoint, InternalError
from tokenmux.models.network import attention, experts
from tokenmux.models.network.rows import grouped_experts_are_exact
from tokenmux.models.weights.image import DTYPES
from tokenmux.models.weights.manifest import Manifest, TensorEntry
from tokenmux.models.weights.packing import Packed, PackedLinear, packing_of

BUILDING = Lock()
"""`init_empty_weights` and transformers' default dtype are settings of the whole process, so models are built
one at a time. Two threads at once left tied weights separate. Nothing is recorded meanwhile either."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """A place where the model keeps a tensor: `table[name]`, one of a module's dictionaries."""

    table: dict[str, torch.Tensor | None]
    name: str


@dataclass(frozen=True, slots=True)
class _Binding:
    """One tensor of the image, the places that show it (several if weights are tied), and what they hold when
    unbound."""

    entry: TensorEntry
    dtype: torch.dtype
    slots: tuple[_Slot, ...]
    empty: torch.Tensor
    packed: Packed | None = None

    def bytes_in(self, image: torch.Tensor) -> torch.Tensor:
        return image[self.entry.offset : self.entry.offset + self.entry.n_bytes]

    def tensor_in(self, image: torch.Tensor) -> torch.Tensor:
        memory = self.bytes_in(image)
        if self.packed is not None:
            return self.packed.over(memory)
        return memory.view(self.dtype).view(self.entry.shape)


class Skeleton:
    """transformers' model for a config, and which tensor of the image goes where.

    With `packed`, it is bound to images that `pack` has rearranged for the processor (`packing.py`). Raises
    BadCheckpoint if the manifest lacks a tensor of the model or has one of another shape.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        manifest: Manifest,
        *,
        packed: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.model = empty_model(config, DTYPES[manifest.dtype], trust_remote_code=trust_remote_code)
        self.step_holder = hold_step(self.model)
        self.n_bytes = manifest.n_bytes
        self._bindings = _match(self.model, manifest)
        if packed:
            self._bindings = _with_packing(self.model, self._bindings)
        self._tensors: tuple[torch.Tensor, ...] = ()

    @property
    def bound(self) -> bool:
        return bool(self._tensors)

    @property
    def layers(self) -> nn.Module:
        """All of the model but its head."""
        layers: nn.Module = self.model.get_decoder()  # type: ignore[no-untyped-call]
        return layers

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The weights to which the model is bound; empty if unbound."""
        return self._tensors

    def pack(self, image: torch.Tensor) -> None:
        """Rearrange an image as read from its file, in place, into what `bind` expects."""
        for binding in self._bindings:
            if binding.packed is not None:
                binding.packed.pack(binding.bytes_in(image))

    def bind(self, weights: torch.Tensor) -> None:
        """Point the model at an image: `weights` is a contiguous `uint8` tensor of the manifest's size,
        64-byte aligned."""
        if weights.dtype != torch.uint8 or weights.ndim != 1 or weights.numel() < self.n_bytes:
            raise InternalError(
                f"weights must be {self.n_bytes} bytes in one dimension, not {weights.dtype} "
                f"{tuple(weights.shape)}"
            )
        with torch.inference_mode():
            tensors = [binding.tensor_in(weights) for binding in self._bindings]
        self.point(tensors)
        self._move_buffers(weights.device)
        self._tensors = tuple(tensors)

    def unbind(self) -> None:
        """Forget the weights. Unbinding twice has no effect."""
        self.point([binding.empty for binding in self._bindings])
        self._tensors = ()

    def point(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let the model use `tensors`, in the order of the property `tensors`, instead of those it is
        bound to."""
        for binding, tensor in zip(self._bindings, tensors, strict=True):
            for slot in binding.slots:
                slot.table[slot.name] = tensor

    def _move_buffers(self, device: torch.device) -> None:
        """Move what no image holds (rotary frequencies, scales) to the device of the weights, where it
        stays."""
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.device != device:
                    module._buffers[name] = buffer.to(device)


class _UninitialisedElsewhere(TorchFunctionMode):
    """Makes `torch.empty` take no memory: parameters begin with it, and all experts of a large layer together
    have more bytes than a process that registers models may allocate."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def empty_model(
    config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """transformers' causal language model on the meta device, in `dtype`, with our attention function.

    Buffers are real: on the meta device rotary frequencies and embedding scales would be lost.
    """
    attention.register_attention()

    def build() -> PreTrainedModel:
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                deepcopy(config),  # it is given the attention function's name
                dtype=dtype,
                attn_implementation=attention.ATTENTION_NAME,
                trust_remote_code=trust_remote_code,
            )
        # Inside the context every assignment makes a new empty parameter, so tied weights come apart.
        model.tie_weights()
        return model

    with BUILDING:
        with _UninitialisedElsewhere():
            model = build()
        if any(buffer.is_meta for buffer in model.buffers()):
            model = build()
    choose_experts(model, dtype, "cpu")
    # Otherwise some models look for padding among the token ids in every step, and wait for the device.
    with suppress(Exception):  # some configs insist on an integer
        model.config.pad_token_id = None
    model.eval()  # type: ignore[no-untyped-call]
    return model


def hold_step(model: PreTrainedModel) -> attention.StepHolder:
    """Give all layers of `model` one holder of the step, for those that do not hand it on. Returns it."""
    holder = attention.StepHolder()
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            setattr(module, attention.HOLDER, holder)
    return holder


def choose_experts(model: PreTrainedModel, dtype: torch.dtype, device: str) -> None:
    """Let a mixture of experts compute by row on a processor. Elsewhere it uses grouped products if they
    are exact, otherwise one per token."""
    if not model._can_set_experts_implementation():
        return
    if device == "cpu":
        experts.register_experts()
        model.set_experts_implementation(experts.EXPERTS_NAME)
    else:
        exact = grouped_experts_are_exact(dtype, device)
        model.set_experts_implementation("grouped_mm" if exact else "batched_mm")


def state_names(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Name and tensor of everything that a checkpoint must hold; tied weights once, under their first
    name."""
    named: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def _with_packing(model: PreTrainedModel, bindings: Sequence[_Binding]) -> tuple[_Binding, ...]:
    """The bindings, with a packing for plain linear layers that have one. Tied weights are excluded: they
    are also read in other ways."""
    linear = {id(m._parameters): m for m in model.modules() if type(m) is nn.Linear}
    found = []
    for binding in bindings:
        module = linear.get(id(binding.slots[0].table)) if len(binding.slots) == 1 else None
        packed = packing_of(binding.dtype, binding.entry.shape) if module is not None else None
        if module is not None and packed is not None:
            module.__class__ = PackedLinear
        found.append(replace(binding, packed=packed))
    return tuple(found)


def _match(model: PreTrainedModel, manifest: Manifest) -> tuple[_Binding, ...]:
    places: dict[int, list[tuple[str, _Slot]]] = {}
    tensors: dict[int, torch.Tensor] = {}
    persistent = model.state_dict(keep_vars=True)
    for prefix, module in model.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                full = f"{prefix}.{name}" if prefix else name
                if tensor is not None and full in persistent:
                    places.setdefault(id(tensor), []).append((full, _Slot(table, name)))
                    tensors[id(tensor)] = tensor
    bindings = []
    for key, named_slots in places.items():
        for entry, slots in _entries_of(named_slots, manifest):
            empty = tensors[key]
            if entry.shape != tuple(empty.shape):
                raise BadCheckpoint(
                    f"{manifest.source}: tensor {entry.name} has shape {entry.shape}, "
                    f"config.json asks for {tuple(empty.shape)}"
                )
            bindings.append(_Binding(entry, DTYPES[entry.dtype], slots, empty))
    unused = sorted(manifest.tensors.keys() - {binding.entry.name for binding in bindings})
    if unused:
        raise BadCheckpoint(
            f"{manifest.source}: {len(unused)} tensors have no place in the model that config.json "
            "describes, "
            f"such as {unused[0]}"
        )
    return tuple(bindings)


def _entries_of(
    named_slots: Sequence[tuple[str, _Slot]], manifest: Manifest
) -> list[tuple[TensorEntry, tuple[_Slot, ...]]]:
    """The image's tensors for the places that show one tensor of the model, each with its places.

    Usually that is one tensor, under any of the names. If the checkpoint has several with different values,
    config.json was wrong to call them tied: each goes to its own place.
    """
    found = [(entry, slot) for name, slot in named_slots if (entry := manifest.tensors.get(name)) is not None]
    if not found:
        raise BadCheckpoint(f"{manifest.source}: tensor {named_slots[0][0]} is missing")
    if len(found) == 1:
        return [(found[0][0], tuple(slot for _, slot in named_slots))]
    if len(found) < len(named_slots):
        absent = next(name for name, _ in named_slots if name not in manifest.tensors)
        raise BadCheckpoint(f"{manifest.source}: of {len(named_slots)} tied tensors only {absent} is missing")
    return [(entry, (slot,)) for entry, slot in found]
