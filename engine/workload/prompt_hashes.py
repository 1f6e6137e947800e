"""What a trace says about the beginnings of prompts: a number for each block of tokens, as Mooncake's traces
have them (Qin et al., FAST 2025).

    blocks of 512    [     7     ][     9     ][ 4 ]    hash_ids 7, 9, 4; the prompt ends in the last
    cells of 384     [   k0   ][   k1   ][   k2   ]      k0 stands for 7; k1 for 7, 9; k2 for 7, 9, 4

A device shares KV in cells of its own size (docs/decisions/022-prefix-cache.md). A cell is known if all
blocks that cover it, counted from the prompt's beginning, have the same numbers: so never more is shared than
could be, and up to a block less.
"""

from collections.abc import Sequence
from hashlib import blake2b

from tokenmux.core.errors import ConfigError
from tokenmux.core.facts import ModelId
from tokenmux.core.prefix import Prefix, PrefixKey, prefix_seed

HASH_TOKENS = 512
"""Tokens of a block in Mooncake's traces."""

MOST_HASH_TOKENS = 1 << 16
"""Limit of a block's tokens. Each block becomes this many keys of a single token at most."""

HASH_BITS = 64
"""Numbers of blocks are below 2 to this power."""


def check_hashes(hash_ids: Sequence[int], hash_tokens: int, input_tokens: int, where: str) -> None:
    """Raise ConfigError, beginning with `where`, unless these can be the blocks of such a prompt."""
    if not 1 <= hash_tokens <= MOST_HASH_TOKENS:
        raise ConfigError(f"{where}: hash_tokens must be 1 to {MOST_HASH_TOKENS}")
    n_blocks = -(-input_tokens // hash_tokens)
    if len(hash_ids) > n_blocks:
        raise ConfigError(
            f"{where}: {len(hash_ids)} hash_ids, but a prompt of {input_tokens} tokens has {n_blocks} blocks "
            f"of {hash_tokens}: set hash_tokens"
        )
    if not all(0 <= one < 1 << HASH_BITS for one in hash_ids):
        raise ConfigError(f"{where}: hash_ids must be whole numbers from 0 to 2**{HASH_BITS} - 1")


def hashed_prefix(
    model: ModelId,
    salts: Sequence[str],
    hash_ids: Sequence[int],
    hash_tokens: int,
    n_prompt: int,
    cell_tokens: int,
) -> Prefix:
    """The keys of a prompt's whole cells, as far as its blocks are numbered."""
    keys = []
    key, n_covered = prefix_seed(model, salts), 0
    for end in range(cell_tokens, min(n_prompt, len(hash_ids) * hash_tokens) + 1, cell_tokens):
        n_needed = -(-end // hash_tokens)
        covering = hash_ids[n_covered:n_needed]
        content = b"".join(one.to_bytes(HASH_BITS // 8, "little") for one in covering)
        key = PrefixKey(blake2b(key + content, digest_size=len(key)).digest())
        keys.append(key)
        n_covered = n_needed
    return Prefix(model, cell_tokens, tuple(keys))
