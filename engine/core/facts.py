"""What is known about a model and a device before anything runs: sizes and speeds, as plain values.

Model facts come from `config.json` and the weight image's manifest; device facts come from the operator or a
short calibration. Nothing here reads files: `tokenmux.models` does.
"""

from dataclasses import dataclass, field
from typing import NewType

ModelId = NewType("ModelId", str)
ImageId = NewType("ImageId", str)

InstanceId = NewType("InstanceId", int)
"""Which instance of a pool, and so which device; counted from 0. A number is not used again."""

FIRST_INSTANCE = InstanceId(0)

NodeId = NewType("NodeId", int)
"""Which node of a server; counted from 0."""

FIRST_NODE = NodeId(0)

BLOCK_TOKENS = 16
"""Tokens per KV block, unless the pool is configured otherwise. In SmolLM2 such a block takes 369 kB in
bfloat16."""


@dataclass(frozen=True, slots=True)
class Image:
    """A contiguous run of weight bytes that is copied as a whole. Models may share an image."""

    id: ImageId
    n_bytes: int


@dataclass(frozen=True, slots=True)
class KvShape:
    """The shape of one token group's KV cache, from which the size of its blocks follows.

    A block holds `block_size` tokens of all layers: `[layer, k|v, head, token, dim]`.

    >>> smollm2 = KvShape(n_layers=30, n_kv_heads=3, head_dim=64, dtype_bytes=2, block_size=16)
    >>> smollm2.token_bytes, smollm2.block_bytes, smollm2.blocks_for(100)
    (23040, 368640, 7)
    """

    n_layers: int
    n_kv_heads: int
    head_dim: int
    dtype_bytes: int
    block_size: int
    token_bytes: int = field(init=False, repr=False, compare=False)
    block_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Computed once: every decision reads it for every request with KV.
        token_bytes = self.n_layers * 2 * self.n_kv_heads * self.head_dim * self.dtype_bytes
        object.__setattr__(self, "token_bytes", token_bytes)
        object.__setattr__(self, "block_bytes", token_bytes * self.block_size)

    def blocks_for(self, n_tokens: int) -> int:
        """Number of blocks that hold `n_tokens` tokens."""
        return -(-n_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Everything that scheduling, memory and planning need to know about a model.

    `n_parameters` counts the weights that one token's forward pass multiplies with (in a mixture of experts,
    the active ones). `n_bytes` is what has to be resident.
    """

    id: ModelId
    images: tuple[Image, ...]
    kv: KvShape
    max_context: int
    n_parameters: int
    vocab_size: int = 0
    n_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Computed once: every decision reads it for every resident and every live model.
        object.__setattr__(self, "n_bytes", sum(image.n_bytes for image in self.images))


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One instance: memory budgets in bytes, speeds in bytes/s and FLOP/s.

    The speeds are a starting point; the cost model corrects itself from measurements.
    """

    name: str
    arena_bytes: int
    host_kv_bytes: int
    copy_in_bytes_per_s: float
    copy_out_bytes_per_s: float
    memory_bytes_per_s: float
    flops_per_s: float
    step_overhead_s: float = 0.0
    copy_overhead_s: float = 0.0
    slab_bytes: int = 16 << 20
    prefill_chunk_tokens: int = 512
    prompt_cell_tokens: int | None = None
    """See `cell_tokens`. It divides `prefill_chunk_tokens`; None: it is the same."""
    prompt_cut_tokens: int | None = None
    """See `cut_tokens`. It divides `cell_tokens`; None: it is the same."""

    @property
    def cell_tokens(self) -> int:
        """Attention over a prompt is computed in cells of this many tokens, whatever chunk they are in: what
        ends on this grid has the same bits in every request."""
        return self.prompt_cell_tokens or self.prefill_chunk_tokens

    @property
    def cut_tokens(self) -> int:
        """A prompt may be computed in pieces that end at multiples of this. On a device of ours these are its
        cells, since other pieces round otherwise."""
        return self.prompt_cut_tokens or self.cell_tokens


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the instances of one host share: the host cache of weights and the disk behind it."""

    cache_bytes: int
    fetch_bytes_per_s: float
    fetch_overhead_s: float = 0.0
