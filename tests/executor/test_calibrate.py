"""Speeds of a device, measured here or in a process of its own."""

import sys

import msgspec
import pytest
import torch

from tokenmux.core.errors import ConfigError, ProcessFailed
from tokenmux.executor.device_speeds import Speeds, measure, read_measured

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_the_processor_is_measured() -> None:
    speeds = measure("cpu")
    assert min(speeds.copy_bytes_per_s, speeds.read_bytes_per_s, speeds.flops_per_s) > 1e6
    assert (speeds.name, speeds.free_bytes) == ("cpu", None)


@NO_GPU
def test_a_gpu_that_is_not_there_is_not_measured() -> None:
    with pytest.raises(ConfigError, match="or set `kind: cpu`"):
        measure("cuda")


def test_what_another_process_measured_is_read_from_its_last_line() -> None:
    speeds = Speeds(1e9, 2e9, 3e12, "some GPU", free_bytes=80 << 30)
    print_it = f"print('a warning'); print({msgspec.json.encode(speeds).decode()!r})"
    assert read_measured("cuda", [sys.executable, "-c", print_it]) == speeds


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise RuntimeError('no device')", "RuntimeError: no device; look at `nvidia-smi`"),
        ("import os; os._exit(3)", "measuring ended with status 3"),
        ("print('{}')", "missing required field"),
        ("pass", "the GPU cannot be used"),
    ],
)
def test_a_process_that_measured_nothing_is_an_error_with_a_remedy(code: str, says: str) -> None:
    with pytest.raises(ProcessFailed, match=says):
        read_measured("cuda", [sys.executable, "-c", code])


def test_a_processor_that_cannot_be_measured_has_a_remedy_of_its_own() -> None:
    with pytest.raises(
        ProcessFailed, match=r"the processor cannot be measured: .* status 3; look at the memory"
    ):
        read_measured("cpu", [sys.executable, "-c", "import os; os._exit(3)"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_in_a_process_that_ends() -> None:
    speeds: Speeds = measure("cuda")
    assert speeds.free_bytes
    assert speeds.read_bytes_per_s > speeds.copy_bytes_per_s > 1e8
    assert torch.cuda.memory_allocated() == 0
