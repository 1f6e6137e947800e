"""A quarter of a second of measuring this machine, so that the cost model's first estimates are not fantasy.

Nothing depends on it being exact: the cost model corrects itself from every step and copy that is carried out.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tokenmux.engine.core.clock import Clock
from tokenmux.engine.device.memory import Memory

_COPY_BYTES = 128 << 20
_ROWS, _WIDTH = 256, 2048


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one core-set of this machine does: bytes/s of a plain copy, bytes/s of reading, FLOP/s of a bf16 product."""

    copy_bytes_per_s: float
    read_bytes_per_s: float
    flops_per_s: float


def measure(clock: Clock, repetitions: int = 3) -> Speeds:
    """Best of a few repetitions each."""
    source, target = Memory(_COPY_BYTES, touch=True), Memory(_COPY_BYTES, touch=True)
    try:
        copy_s = min(
            _timed(clock, lambda: ctypes.memmove(target.address, source.address, _COPY_BYTES))
            for _ in range(repetitions)
        )
        weights = torch.frombuffer(source.buffer, dtype=torch.bfloat16).view(-1, _WIDTH)
        row = torch.zeros(2, _WIDTH, dtype=torch.bfloat16)
        with torch.inference_mode():
            read_s = min(
                _timed(clock, lambda: torch.nn.functional.linear(row, weights)) for _ in range(repetitions)
            )
            square = torch.zeros(_WIDTH, _WIDTH, dtype=torch.bfloat16)
            rows = torch.zeros(_ROWS, _WIDTH, dtype=torch.bfloat16)
            product_s = min(
                _timed(clock, lambda: torch.nn.functional.linear(rows, square)) for _ in range(repetitions)
            )
    finally:
        source.close()
        target.close()
    return Speeds(
        copy_bytes_per_s=_COPY_BYTES / copy_s,
        read_bytes_per_s=_COPY_BYTES / read_s,
        flops_per_s=2.0 * _ROWS * _WIDTH * _WIDTH / product_s,
    )


def _timed(clock: Clock, call: Callable[[], object]) -> float:
    began_s = clock.now_s()
    call()
    return clock.now_s() - began_s
