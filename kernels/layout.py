"""Where the keys and values of one token lie: the block-major layout that every kernel here shares.

A *block* holds the KV of `block_size` tokens, for all layers, in one contiguous piece:

    block   [ layer 0 .............................. | layer 1 ... | ... | layer L-1 ]
    layer     [ k ................ | v ................ ]
    k or v      [ head 0 ....... | head 1 ... | ... ]
    head          [ token 0 | token 1 | ... | token B-1 ]
    token           [ dim 0 ... dim D-1 ]

so that paging one block is one large copy, and the tokens of one head, which attention reads together, are
adjacent (`block_size * head_dim` elements in a row).

Blocks may lie anywhere in the arena. A kernel gets the arena as one flat tensor of the model's dtype and, for
each sequence, a row of an int64 *table*: entry j is the offset of the sequence's j-th block, **in elements
from the start of that tensor**. Elements and not block numbers, because models with blocks of different size
share one arena, so there is no common block size to count in. Offsets are multiples of 16 elements, so that
the compiler can use 16-byte loads. Table entries past a sequence's length are never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

OFFSET_ALIGNMENT = 16
"""Every block offset, head size and tensor stride that a kernel sees is a multiple of this many elements."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape of one model's blocks. Strides and sizes are in elements."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size: int

    def __post_init__(self) -> None:
        if min(self.layers, self.kv_heads, self.head_dim, self.block_size) < 1:
            raise ValueError(f"every extent of a KV layout is at least 1, got {self}")
        if self.head_dim % OFFSET_ALIGNMENT:
            raise ValueError(
                f"head_dim is a multiple of {OFFSET_ALIGNMENT}, got {self.head_dim}: pad the heads"
            )

    @property
    def head_stride(self) -> int:
        """Distance between heads, within the keys (or the values) of a layer."""
        return self.block_size * self.head_dim

    @property
    def value_stride(self) -> int:
        """Distance from a key to the value of the same layer, head and token."""
        return self.kv_heads * self.head_stride

    @property
    def layer_stride(self) -> int:
        return 2 * self.value_stride

    @property
    def block_elements(self) -> int:
        return self.layers * self.layer_stride

    def block(self, arena: torch.Tensor, offset: int) -> torch.Tensor:
        """The block at `offset` as a view `[layer, k|v, head, token, dim]` of the flat `arena`."""
        if offset % OFFSET_ALIGNMENT:
            raise ValueError(f"block offsets are multiples of {OFFSET_ALIGNMENT} elements, got {offset}")
        return arena[offset : offset + self.block_elements].view(
            self.layers, 2, self.kv_heads, self.block_size, self.head_dim
        )

    def gather(
        self, arena: torch.Tensor, offsets: list[int], length: int, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[head, length, dim]` of the first `length` tokens of a sequence (a copy).

        For references and tests: a kernel that gathers first has already lost the time that it was meant to
        save.
        """
        used = -(-length // self.block_size)
        parts = [self.block(arena, offset)[layer] for offset in offsets[:used]]
        if not parts:
            empty = arena.new_empty(self.kv_heads, 0, self.head_dim)
            return empty, empty
        whole = torch.cat(parts, dim=2)
        return whole[0, :, :length], whole[1, :, :length]
