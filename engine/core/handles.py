"""Handles of memory, and the copies and moves between them. Only a device turns a handle into an address, at
launch."""

from dataclasses import dataclass
from typing import NewType

from tokenmux.core.facts import KvShape

ExtentHandle = NewType("ExtentHandle", int)
"""A contiguous range of an arena."""

BlockHandle = NewType("BlockHandle", int)
"""A KV block: a slab and a place in it."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One block to copy between device and host, in either direction."""

    shape: KvShape
    device: BlockHandle
    host: BlockHandle


@dataclass(frozen=True, slots=True)
class ExtentMove:
    """Move one extent from `source` to `target` (byte offsets). The moves of a plan run in order."""

    handle: ExtentHandle
    source: int
    target: int
    n_bytes: int
