"""What a compiled kernel takes from the device, read from its machine code with the tools in Triton's
wheel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton

if TYPE_CHECKING:
    from collections.abc import Mapping

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_LOAD = re.compile(r"\bLDG(?:STS)?\.E((?:\.\w+)*)")
_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}


@dataclass(frozen=True, slots=True)
class Resources:
    """`registers` per thread, `spilled` instructions that access local memory, `shared_bytes` per program.

    `loads` counts the load instructions from global memory by width in bits, as they appear in the code
    (synchronous and asynchronous, before and inside loops): 128 is the widest.
    """

    registers: int
    spilled: int
    shared_bytes: int
    loads: Mapping[int, int]

    @property
    def wide_loads(self) -> int:
        return self.loads.get(128, 0)


def resources(compiled: Any) -> Resources:
    """The resources of what `Variant.compile` returned."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _dump("-res-usage", cubin.name)
        code = _dump("-sass", cubin.name)
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"no register count in:\n{usage}")
    return Resources(
        registers=int(registers[1]),
        spilled=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared_bytes=compiled.metadata.shared,
        loads=Counter(_bits(suffixes) for suffixes in _LOAD.findall(code)),
    )


def _bits(suffixes: str) -> int:
    """The width that an instruction's suffixes (`.BYPASS.128`) name; 32 bits by default."""
    return next((_BITS[part] for part in suffixes.split(".") if part in _BITS), 32)


def _dump(option: str, cubin: str) -> str:
    command = [str(_CUOBJDUMP), option, cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
