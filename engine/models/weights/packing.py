"""Weights of linear layers in the layout that the processor multiplies fastest.

oneDNN rearranges a row-major weight in every call. In bfloat16, for the few rows of a decode step, that takes
longer than the product itself: a layer of 576 x 1536 takes 80 us with its weight row-major and 48 us with it
rearranged beforehand, with the same bits in the result. So images in the host cache hold such weights
rearranged ("packed"), in the same place and the same number of bytes; on disk they stay row-major.

Only oneDNN can read a packed weight. The C interface that torch keeps stable for models compiled ahead of
time (`aoti_torch_*`) can make one over memory that is not torch's own. If any of this is missing, or does not
compute what the plain product does, nothing is packed.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

_DTYPE = torch.bfloat16
"""Other types are not packed: float32 gains little (its products need no rearranging) and is the type in
which tokens are compared with other engines."""


@dataclass(frozen=True, slots=True)
class Packed:
    """How a weight `[outputs, inputs]` was packed: its shape, and oneDNN's description of its layout."""

    shape: tuple[int, int]
    layout: bytes

    def pack(self, memory: torch.Tensor) -> None:
        """Pack the row-major weight in `memory`, which is `uint8` and 64-byte aligned."""
        packed = _reordered(memory.view(_DTYPE).view(self.shape))
        ctypes.memmove(memory.data_ptr(), torch.ops.mkldnn.data_ptr(packed), memory.nbytes)

    def over(self, memory: torch.Tensor) -> torch.Tensor:
        """The weight that was packed into `memory`. Does not keep the memory alive."""
        return _view(memory.data_ptr(), self.shape, self.layout)


class PackedLinear(nn.Linear):
    """A linear layer whose weight may be packed."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.weight.is_mkldnn:
            return packed_product(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)


@cache
def _scripted_product() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]:
    scripted: Callable[..., torch.Tensor] = torch.jit.script(_product)
    return scripted


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def packed_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear(x, weight, bias)` with a packed weight. torch's function modes see it as `F.linear`
    (`row_pieces.py`)."""
    if has_torch_function_unary(x):
        product: torch.Tensor = handle_torch_function(packed_product, (x,), x, weight, bias)
        return product
    # The tracer does not know this operator's argument types; TorchScript does.
    return (_scripted_product() if torch._C._get_tracing_state() else _product)(x, weight, bias)


@cache
def packing_of(dtype: torch.dtype, shape: tuple[int, ...]) -> Packed | None:
    """How weights of this type and shape are packed on this machine, or None if they are not."""
    if dtype != _DTYPE or len(shape) != 2 or not _works():
        return None
    weight = torch.zeros(shape, dtype=dtype)
    packed = _reordered(weight)
    if torch.ops.mkldnn._nbytes(packed) != weight.nbytes:
        return None  # padded to whole tiles
    return Packed((shape[0], shape[1]), _layout(packed))


@cache
def _works() -> bool:
    """True if packed products work here and give the plain product's bits."""
    weight = torch.randn(128, 192, generator=torch.Generator().manual_seed(0)).to(_DTYPE)
    x = torch.randn(5, 192, generator=torch.Generator().manual_seed(1)).to(_DTYPE)
    try:
        packing = Packed((128, 192), _layout(_reordered(weight)))
        memory = weight.clone().view(-1).view(torch.uint8)
        packing.pack(memory)
        return torch.equal(_product(x, packing.over(memory), None), F.linear(x, weight))
    except (AttributeError, OSError, RuntimeError, TypeError):
        return False


def _reordered(weight: torch.Tensor) -> torch.Tensor:
    # Without a number of rows oneDNN chooses a layout for any; with one it chose the same for 2, 8 and 32.
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)  # type: ignore[no-any-return]


def _layout(packed: torch.Tensor) -> bytes:
    layout: bytes = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
    return layout


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    sizes = ctypes.POINTER(ctypes.c_int64)
    library.aoti_torch_create_tensor_from_blob_v2.argtypes = [
        ctypes.c_void_p,  # memory
        ctypes.c_int64,  # dimensions
        sizes,
        sizes,  # strides
        ctypes.c_int64,  # offset
        ctypes.c_int32,  # dtype
        ctypes.c_int32,  # device kind
        ctypes.c_int32,  # device number
        ctypes.POINTER(ctypes.c_void_p),  # the resulting tensor
        ctypes.c_int32,  # layout
        ctypes.c_char_p,  # oneDNN's description of the layout
        ctypes.c_int64,
    ]
    library.aoti_torch_delete_tensor_object.argtypes = [ctypes.c_void_p]
    return library


def _view(address: int, shape: tuple[int, int], layout: bytes) -> torch.Tensor:
    library = _library()
    handle = ctypes.c_void_p()
    failed: int = library.aoti_torch_create_tensor_from_blob_v2(
        address,
        2,
        (ctypes.c_int64 * 2)(*shape),
        (ctypes.c_int64 * 2)(shape[1], 1),
        0,
        library.aoti_torch_dtype_bfloat16(),
        library.aoti_torch_device_type_cpu(),
        0,
        ctypes.byref(handle),
        library.aoti_torch_layout__mkldnn(),
        layout,
        len(layout),
    )
    if failed:
        raise RuntimeError("torch cannot make a packed weight of memory that it does not own")
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    tensor: torch.Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(
        capsule(handle.value, None, None)
    )
    if tensor._use_count() > 1:  # type: ignore[attr-defined]  # missing in the stubs
        # Despite its name this call does not take over the handle. Not deleting it leaks 1.7 kB per weight
        # and activation.
        library.aoti_torch_delete_tensor_object(handle)
    return tensor
