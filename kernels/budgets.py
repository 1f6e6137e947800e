"""Limits of what each kernel may take from the device, checked against the compiled code for every
architecture.

No kernel spills. Shared memory stays under 99 KiB, the most that sm_86, sm_89 and sm_120 give a program,
except in a row for Hopper alone. Registers are what the compilers of the supported range need, rounded up
by a few: a change that costs a program per SM should be a decision, not a side effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmux.kernels.tiles import GpuArchitecture, group_tile, padded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenmux.kernels.variant import Variant
    from tokenmux.kernels.warm import ModelShape


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits: `registers` per thread, and shared memory per program."""

    registers: int
    shared_kib: int


BUDGETS = {
    "kv_append": Budget(registers=48, shared_kib=0),
    "paged_decode.attend, heads of 64, group up to 16": Budget(registers=160, shared_kib=40),
    "paged_decode.attend, heads of 128, group up to 16": Budget(registers=160, shared_kib=40),
    "paged_decode.attend, heads of 256, group up to 16": Budget(registers=160, shared_kib=44),
    "paged_decode.attend, heads of 64, group up to 64": Budget(registers=240, shared_kib=76),
    "paged_decode.attend, heads of 128, group up to 64": Budget(registers=192, shared_kib=84),
    "paged_decode.attend, heads of 256, group up to 64": Budget(registers=208, shared_kib=99),
    "paged_decode.merge": Budget(registers=96, shared_kib=1),
    "paged_prefill, heads of 64": Budget(registers=240, shared_kib=76),
    "paged_prefill, heads of 128": Budget(registers=224, shared_kib=99),
    "paged_prefill, heads of 256": Budget(registers=252, shared_kib=99),
    "paged_prefill, heads of 256, on Hopper": Budget(registers=252, shared_kib=162),
    "kv_page": Budget(registers=32, shared_kib=0),
    "kv_page_out_int8": Budget(registers=56, shared_kib=1),
    "kv_page_in_int8": Budget(registers=40, shared_kib=4),
    "sample.summarise": Budget(registers=96, shared_kib=1),
    "sample.threshold": Budget(registers=128, shared_kib=1),
    "sample.draw": Budget(registers=168, shared_kib=4),
    "sample.finish": Budget(registers=48, shared_kib=1),
}

_BY_HEAD_SIZE = {"paged_decode.attend", "paged_prefill"}


def budget_of(name: str, shape: ModelShape, capability: int) -> Budget:
    """The budget of the form `name` (see `warm.forms`) of a model of `shape` on a device of `capability`."""
    row = name.replace("sample_with_rules.", "sample.")
    if name in _BY_HEAD_SIZE:
        row += f", heads of {max(64, padded(shape.head_dim))}"
    if name == "paged_decode.attend":
        row += f", group up to {16 if group_tile(shape.group) == 16 else 64}"
    if GpuArchitecture.of(capability) is GpuArchitecture.SM_90:
        return BUDGETS.get(f"{row}, on Hopper", BUDGETS[row])
    return BUDGETS[row]


def wide_loads(name: str, variant: Variant, itemsize: int) -> int:
    """How many 16-byte loads a form's code must contain, if nothing important is loaded in smaller pieces.

    One tile, divided among the threads. Attention loads a tile of keys and a tile of values, asynchronously:
    ahead of the loop, and inside it. If keys or values were loaded in smaller pieces, half of them would be
    missing.
    """
    constants: Mapping[str, int] = variant.constants
    match name.split(".")[0]:
        case "paged_decode" if name.endswith("merge"):
            elements, itemsize = constants["SPLIT_TILE"] * constants["DIM_TILE"], 4
        case "paged_decode" | "paged_prefill":
            elements = 4 * constants["TOKEN_TILE"] * constants["DIM_TILE"]
        case "kv_append":
            elements = 2 * constants["TOKEN_TILE"] * constants["DIM_TILE"]
        case "kv_page":
            elements, itemsize = constants["CHUNK"], 1
        case "kv_page_out_int8":
            elements = constants["ROWS"] * constants["DIM_TILE"]
        case "kv_page_in_int8":
            elements, itemsize = constants["ROWS"] * constants["DIM_TILE"], 1
        case "sample" if constants.get("ALIGNED"):
            elements = constants["TILE"]
        case _:
            return 0
    return elements * itemsize // (16 * 32 * variant.warps)
