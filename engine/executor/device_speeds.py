"""How fast a device of this machine is, so that the cost model starts with sensible estimates.

Nothing depends on it being exact: the cost model corrects itself with every step and copy.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from tokenmux.core.errors import ProcessFailed
from tokenmux.core.memory_budgets import DeviceKind

_FAILED: Mapping[DeviceKind, str] = {
    "cpu": "the processor cannot be measured: {}; look at the memory and the processes that are left",
    "cuda": "the GPU cannot be used: {}; look at `nvidia-smi` and at the kernel's log",
}


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


def measure(kind: DeviceKind, gpu: str = "") -> Speeds:
    """Measure a device in a process of its own; `gpu` is a value of CUDA_VISIBLE_DEVICES, or empty for the
    first one. Raises ConfigError if there is none of that kind, ProcessFailed if it cannot be used."""
    if kind == "cuda":
        from tokenmux.device.cuda.gpu import check_cuda  # imports torch, which a server of CPUs does not need

        check_cuda()
    return read_measured(kind, [sys.executable, "-P", "-m", "tokenmux.executor.calibrate", kind], gpu)


def read_measured(kind: DeviceKind, command: list[str], gpu: str = "") -> Speeds:
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
        raise ProcessFailed(_FAILED[kind].format(error)) from error


def _last_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]
