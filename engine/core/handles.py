"""Handles of memory, and what is copied or moved between them. Only a device turns a handle into an address,
at launch."""

from dataclasses import dataclass
from typing import NewType

from tokenmux.core.facts import KvShape

ExtentHandle = NewType("ExtentHandle", int)
"""A contiguous range of an arena."""

BlockHandle = NewType("BlockHandle", int)
"""A KV block: a slab and a place in it."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One block that a copy moves between the device and the host, whichever way."""

    shape: KvShape
    device: BlockHandle
    host: BlockHandle


@dataclass(frozen=True, slots=True)
class ExtentMove:
    """One extent goes from `source` to `target` (byte offsets). Moves of a plan are carried out in their
    order."""

    handle: ExtentHandle
    source: int
    target: int
    n_bytes: int
