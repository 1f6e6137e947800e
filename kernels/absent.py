"""A GPU that is not there: kernels are compiled for it ahead of time, and tests and benchmarks launch them on
it.

It claims to be a GPU, accepts any kernel and runs none. Everything of Triton's launch path before it is real:
how arguments are specialised, and under which key the compiled form is looked up.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(eq=False)
class AbsentDevice:
    """The part of Triton's driver that a launch uses. `launched` are the names of kernels, `programs` the
    number of programs of each."""

    capability: int
    launched: list[str] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)

    @property
    def utils(self) -> AbsentDevice:
        return self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> AbsentDevice:
        """Not a number, which could be another device's key."""
        return self

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {"max_shared_mem": 99 * 1024}

    def load_binary(self, name: str, *_: object) -> tuple[object, str, int, int, int]:
        return object(), name, 0, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def launcher_cls(self, source: object, metadata: Any) -> Callable[..., None]:
        def launch(x: int, y: int, z: int, *_: object) -> None:
            self.launched.append(metadata.name)
            self.programs.append(x * y * z)

        return launch


@contextmanager
def absent_device(capability: int) -> Iterator[AbsentDevice]:
    """Make Triton launch on a device that is not there. The driver that was active before is restored
    afterwards."""
    before = driver._active  # `driver.active` would create one, which fails if there is no device
    device = AbsentDevice(capability)
    driver.set_active(device)
    try:
        yield device
    finally:
        driver._active = before
