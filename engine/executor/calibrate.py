"""Measures this machine for a quarter of a second, so that the cost model starts with sensible estimates.

Nothing depends on it being exact: the cost model corrects itself with every step and copy.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch

from tokenmux.core.clock import Clock
from tokenmux.core.errors import ProcessFailed
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.device.cuda.gpu import TorchGpu, check_cuda
from tokenmux.device.memory import Memory
from tokenmux.processes.available_memory import available_bytes

_COPY_BYTES = 128 << 20
_ROWS, _WIDTH = 256, 2048

_GPU_SQUARE = 4096
"""A product of 0.14 TFLOP: a fifth of a millisecond on an H100, long against a launch."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speeds of a device: bytes/s of a plain copy from and to the host, bytes/s of reading, FLOP/s of a bf16
    product."""

    copy_bytes_per_s: float
    read_bytes_per_s: float
    flops_per_s: float
    name: str = "cpu"
    free_bytes: int | None = None
    """Free device memory, or None if the device has none of its own."""
    host_bytes: int | None = None
    """Available host memory, or None if the system does not tell or the device has no use for more."""


def measure(kind: DeviceKind, clock: Clock, gpu: str = "") -> Speeds:
    """Measure a device; `gpu` is a value of CUDA_VISIBLE_DEVICES, or empty for the first one. Raises
    ConfigError if there is none of that kind, ProcessFailed if it cannot be used."""
    if kind == "cpu":
        return measure_cpu(clock)
    check_cuda()
    # In a separate process: a CUDA context keeps hundreds of MB of the device until its process ends.
    return read_measured([sys.executable, "-P", "-m", "tokenmux.executor.calibrate"], gpu)


def read_measured(command: list[str], gpu: str = "") -> Speeds:
    """Run a command whose last line of output is `Speeds` as JSON. Raises ProcessFailed with the last line
    of its errors."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if gpu:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False
    )
    try:
        if done.returncode:
            raise ValueError(_last_line(done.stderr) or f"measuring ended with status {done.returncode}")
        return msgspec.json.decode(_last_line(done.stdout), type=Speeds)
    except ValueError as error:
        raise ProcessFailed(
            f"the GPU cannot be used: {error}; look at `nvidia-smi` and at the kernel's log"
        ) from error


def _last_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]


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
    print(msgspec.json.encode(_measure_cuda()).decode())
