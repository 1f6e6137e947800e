"""Tensors: which of the file's make which of the model's, each used exactly once, and their values.

Names come from the `gguf` package's tables. The changes that llama.cpp's converters make are undone: rows of
queries and keys in pairs, norms with 1 added, experts in three tensors, transposed matrices of GPT-2.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.catalogue.gguf.gguf_config import GgufArchitecture
from tokenmux.models.catalogue.gguf.header import GgufTensor
from tokenmux.models.catalogue.gguf.shards import GgufModel

_EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?")
_PIECE = 1 << 22
"""Numbers dequantised at a time: 16 MiB in float32."""

Make = Callable[[Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A tensor of the model: `make` of these tensors of the file. `exact` means computed in float32 and
    rounded afterwards."""

    names: tuple[str, ...]
    make: Make
    exact: bool = False


def plan_tensors(
    model: GgufModel,
    architecture: GgufArchitecture,
    wanted: Mapping[str, torch.Tensor],
    *,
    heads: tuple[int, int],
    n_layers: int,
    already_used: frozenset[str],
) -> dict[str, TensorSource]:
    """The sources of the tensors `wanted` (on any device), by name. Every tensor of the file is used exactly
    once.

    `heads` are the numbers of query and of key heads; `already_used` are tensors that the config has taken.
    Raises BadCheckpoint that names a tensor which is missing, left over or of another shape, UnsupportedModel
    for a type that cannot be read.
    """
    table = gguf.get_tensor_name_map(architecture.names, n_layers)
    sources: dict[str, TensorSource] = {}
    for name in wanted:
        if matched := _EXPERTS.fullmatch(name):
            blk, bias = f"blk.{matched[1]}", bool(matched[3])
            turned = architecture.names is gguf.MODEL_ARCH.GPT_OSS
            sources[name] = _expert_source(model, blk, matched[2], bias=bias, turned=turned)
        else:
            sources[name] = _plain_source(model, architecture, table, name, heads)
    used = [part for source in sources.values() for part in source.names]
    if missing := sorted(set(used) - model.tensors.keys()):
        raise BadCheckpoint(f"{model.file}: {_count(len(missing), 'tensor')} missing, such as {missing[0]}")
    if left := sorted(model.tensors.keys() - set(used) - already_used):
        raise UnsupportedModel(
            f"{model.file}: {_count(len(left), 'tensor')} without a use in this architecture, "
            f"such as {left[0]}"
        )
    for name, source in sources.items():
        _check(model, source, name, wanted[name])
    return sources


def read_tensor(model: GgufModel, source: TensorSource, dtype: torch.dtype) -> torch.Tensor:
    """Read one tensor in `dtype`.

    Raises BadCheckpoint if a value is not finite, or the file has changed.
    """
    kind = torch.float32 if source.exact else dtype
    return source.make([_numbers(model.tensors[name], kind) for name in source.names]).to(dtype)


def values(tensor: GgufTensor) -> list[float]:
    """All values of a small tensor, with as few digits as distinguish them in float32."""
    return [float(str(number)) for number in _numbers(tensor, torch.float32).reshape(-1).numpy()]


def _plain_source(
    model: GgufModel,
    architecture: GgufArchitecture,
    table: gguf.TensorNameMap,
    name: str,
    heads: tuple[int, int],
) -> TensorSource:
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        stem, suffix = name, "weight"
    found = table.get_name(stem)
    if found is None:
        raise UnsupportedModel(f"{model.file}: no tensor of a GGUF file is known to hold {name}")
    stored = f"{found}.{suffix}"
    if architecture.paired and found.endswith((".attn_q", ".attn_k")):
        return TensorSource((stored,), _in_halves(heads[found.endswith(".attn_k")]))
    if architecture.raised_norms and name.endswith("norm.weight"):
        return TensorSource((stored,), lambda parts: parts[0] - 1, exact=True)
    if (
        architecture.names is gguf.MODEL_ARCH.GPT2
        and stem.endswith(("c_attn", "c_proj", "c_fc"))
        and suffix == "weight"
    ):
        return TensorSource((stored,), lambda parts: parts[0].T)
    if found.endswith(".ffn_gate_inp_shexp"):
        return TensorSource((stored,), lambda parts: parts[0].reshape(1, -1))
    return TensorSource((stored,), lambda parts: parts[0])


def _expert_source(model: GgufModel, blk: str, which: str, *, bias: bool, turned: bool) -> TensorSource:
    """The source of a layer's experts: one tensor each for gate, up and down, or (in files of 2023) one per
    expert.

    transformers has gate and up in one tensor: one after the other or, if `turned`, column by column.
    """
    suffix = "bias" if bias else "weight"
    if which == "down":
        if single := _single_experts(model, blk, "down"):
            return TensorSource(single, lambda parts: torch.stack(tuple(parts)))
        turn = turned and not bias
        return TensorSource(
            (f"{blk}.ffn_down_exps.{suffix}",), lambda parts: parts[0].transpose(1, 2) if turn else parts[0]
        )
    if turned:
        stored = (f"{blk}.ffn_gate_exps.{suffix}", f"{blk}.ffn_up_exps.{suffix}")
        return TensorSource(stored, _columns_by_turns if bias else _rows_by_turns)
    if gates := _single_experts(model, blk, "gate"):
        return TensorSource(gates + _single_experts(model, blk, "up"), _gates_then_ups)
    if f"{blk}.ffn_gate_up_exps.{suffix}" in model.tensors:
        return TensorSource((f"{blk}.ffn_gate_up_exps.{suffix}",), lambda parts: parts[0])
    stored = (f"{blk}.ffn_gate_exps.{suffix}", f"{blk}.ffn_up_exps.{suffix}")
    return TensorSource(stored, lambda parts: torch.cat(tuple(parts), 1))


def _single_experts(model: GgufModel, blk: str, which: str) -> tuple[str, ...]:
    pattern = re.compile(rf"{re.escape(blk)}\.ffn_{which}\.(\d+)\.weight")
    found = {int(matched[1]): matched[0] for name in model.tensors if (matched := pattern.fullmatch(name))}
    return tuple(found[number] for number in sorted(found))


def _gates_then_ups(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    half = len(parts) // 2
    return torch.cat((torch.stack(tuple(parts[:half])), torch.stack(tuple(parts[half:]))), 1)


def _rows_by_turns(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    gate, up = parts
    return torch.stack((gate, up), 2).reshape(gate.shape[0], -1, gate.shape[-1]).transpose(1, 2)


def _columns_by_turns(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(tuple(parts), 2).reshape(parts[0].shape[0], -1)


def _in_halves(n_heads: int) -> Make:
    """From rotary pairs of neighbours to pairs half a head apart."""

    def make(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        (rows,) = parts
        paired = rows.reshape(n_heads, -1, 2, *rows.shape[1:])
        return paired.transpose(1, 2).reshape(rows.shape)

    return make


def _check(model: GgufModel, source: TensorSource, name: str, wanted: torch.Tensor) -> None:
    """Build the tensor without data, and compare the shape."""
    shapes = [model.tensors[part].shape for part in source.names]
    try:
        made = tuple(source.make([torch.empty(shape, device="meta") for shape in shapes]).shape)
    except (RuntimeError, IndexError, ValueError):
        made = None
    if made != tuple(wanted.shape):
        raise BadCheckpoint(
            f"{model.file}: {' and '.join(source.names[:2])} {[list(shape) for shape in shapes[:2]]} "
            f"cannot make {name} {list(wanted.shape)}"
        )
    for part in source.names:
        _check_kind(model, model.tensors[part])


def _check_kind(model: GgufModel, tensor: GgufTensor) -> None:
    _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
    try:
        _dequantised(np.zeros((1, block_bytes), np.uint8), tensor.kind)
    except NotImplementedError:
        raise UnsupportedModel(
            f"{model.file}: the tensor {tensor.name} is of type {tensor.kind.name}, which cannot be read"
        ) from None


def _numbers(tensor: GgufTensor, dtype: torch.dtype) -> torch.Tensor:
    made = torch.empty(tensor.shape, dtype=dtype)
    for target, piece in _pieces(tensor, made):
        target.copy_(piece)
        if not bool(torch.isfinite(target).all()):
            kind = str(dtype).removeprefix("torch.")
            raise BadCheckpoint(
                f"{tensor.file}: the tensor {tensor.name} has numbers that are not finite in {kind}"
            )
    return made


def _pieces(tensor: GgufTensor, made: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of `made` and their values in float32, piece by piece."""
    rows = made.view(-1, tensor.shape[-1])
    try:
        raw = np.memmap(tensor.file, np.uint8, "r", tensor.offset, (len(rows), tensor.n_bytes // len(rows)))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{tensor.file}: changed while it was read ({error})") from None
    step = max(1, _PIECE // tensor.shape[-1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step], _dequantised(raw[start : start + step], tensor.kind)


def _dequantised(raw: np.ndarray, kind: GGMLQuantizationType) -> torch.Tensor:
    """Rows of bytes as rows of float32.

    Raises NotImplementedError for a type that `gguf` cannot dequantise.
    """
    if kind in (GGMLQuantizationType.F64, GGMLQuantizationType.I8, GGMLQuantizationType.I16):
        raise NotImplementedError
    # A copy, since torch does not take read-only memory.
    return torch.from_numpy(np.array(gguf.dequantize(np.array(raw), kind), np.float32, copy=True))


def _count(number: int, what: str) -> str:
    return f"1 {what} is" if number == 1 else f"{number} {what}s are"
