"""Kinds of launch arguments: the annotations in a kernel's signature, where each argument is declared once.

    @kernel
    def append(key: kinds.MODEL, slots: kinds.INT64, layer: kinds.NUMBER, HEAD_DIM: tl.constexpr): ...

They determine what Triton may specialise on, what the ahead-of-time compiler passes in place of arguments,
and which tensors a launch checks for alignment (`variant.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of argument: a tensor of `dtype`, or a number (`int` or `float`).

    `dtype` is None for a tensor whose dtype depends on the compiled form. A tensor is either read
    `in_vectors` of 16 bytes, and then starts on such a boundary, or one number at a time, and may start
    anywhere.
    """

    name: str
    dtype: torch.dtype | type[int | float] | None = None
    in_vectors: bool = False


MODEL = Kind("model", in_vectors=True)
LOGITS = Kind("logits", in_vectors=True)
SINKS = Kind("sinks")

BYTES = Kind("bytes", torch.uint8, in_vectors=True)
INT8 = Kind("int8", torch.int8, in_vectors=True)
PARTIALS = Kind("partials", torch.float32, in_vectors=True)

INT32 = Kind("int32", torch.int32)
INT64 = Kind("int64", torch.int64)
FLOAT32 = Kind("float32", torch.float32)

NUMBER = Kind("number", int)
FRACTION = Kind("fraction", float)
