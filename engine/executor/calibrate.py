"""Measures a device of this machine for a quarter of a second: `python -m tokenmux.executor.calibrate KIND`
prints its `Speeds` as JSON.

Servers read them from such a process (`device_speeds.py`), since it imports torch, and since a CUDA context
keeps hundreds of MB of a device until its process ends.
"""

import ctypes
import sys
from collections.abc import Callable

import msgspec
import torch

from tokenmux.core.clock import Clock
from tokenmux.device.cuda.gpu import TorchGpu
from tokenmux.device.memory import Memory
from tokenmux.executor.device_speeds import Speeds
from tokenmux.processes.available_memory import available_bytes
from tokenmux.processes.monotonic_clock import MonotonicClock

_COPY_BYTES = 128 << 20
_ROWS, _WIDTH = 256, 2048

_GPU_SQUARE = 4096
"""A product of 0.14 TFLOP: a fifth of a millisecond on an H100, long against a launch."""


def measure_cpu(clock: Clock, repetitions: int = 3) -> Speeds:
    """The best of a few repetitions of each measurement."""
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


def _measure_cuda(repetitions: int = 3) -> Speeds:
    """The best of a few repetitions of each measurement, after one that does not count."""
    name = TorchGpu().name
    free_bytes, _ = torch.cuda.mem_get_info()
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    weights = torch.zeros(_COPY_BYTES // 2 // _GPU_SQUARE, _GPU_SQUARE, dtype=torch.bfloat16, device="cuda")
    row = torch.zeros(2, _GPU_SQUARE, dtype=torch.bfloat16, device="cuda")
    square = torch.zeros(_GPU_SQUARE, _GPU_SQUARE, dtype=torch.bfloat16, device="cuda")

    def best_s(call: Callable[[], object]) -> float:
        call()
        return min(_timed_on_gpu(call) for _ in range(repetitions))

    with torch.inference_mode():
        copy_s = max(
            best_s(lambda: device.copy_(host, non_blocking=True)),
            best_s(lambda: host.copy_(device, non_blocking=True)),
        )
        read_s = best_s(lambda: torch.nn.functional.linear(row, weights))
        product_s = best_s(lambda: torch.matmul(square, square))
    return Speeds(
        copy_bytes_per_s=_COPY_BYTES / copy_s,
        read_bytes_per_s=_COPY_BYTES / read_s,
        flops_per_s=2.0 * _GPU_SQUARE**3 / product_s,
        name=name,
        free_bytes=free_bytes,
        host_bytes=available_bytes(),
    )


def _timed_on_gpu(call: Callable[[], object]) -> float:
    """Seconds by the GPU's own clock."""
    began = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    ended = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    began.record()
    call()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


if __name__ == "__main__":
    measured = _measure_cuda() if sys.argv[1] == "cuda" else measure_cpu(MonotonicClock())
    print(msgspec.json.encode(measured).decode())
