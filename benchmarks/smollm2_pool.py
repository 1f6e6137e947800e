"""A server of SmolLM2-135M on virtual devices, in processes of its own, and what a client of it needs."""

import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenmux.client import AsyncClient
from tokenmux.demo.process import served
from tokenmux.demo.real_checkpoint import obtain_demo_checkpoint
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry

MODEL = "smollm2"
PREFILL_CHUNK_TOKENS = 512
KV_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Smollm2Pool:
    """A pool that serves. `names` are the models: one checkpoint under several names."""

    client: AsyncClient
    entry: Entry
    names: tuple[str, ...]


@asynccontextmanager
async def smollm2_pool(
    cache: Path, *, n_devices: int = 1, n_models: int = 1, prefix_cache: bool = False
) -> AsyncIterator[Smollm2Pool]:
    """Register the checkpoint in a catalogue of its own and serve it. Every device has room for all models
    and their KV."""
    checkpoint = obtain_demo_checkpoint(cache)
    names = (MODEL, *(f"{MODEL}-{i}" for i in range(1, n_models)))
    with tempfile.TemporaryDirectory(prefix="tokenmux-pool-") as name:
        folder = Path(name)
        entry, *_ = [Catalogue(folder / "catalogue").register_folder(name, checkpoint) for name in names]
        config = {
            "listen": "127.0.0.1:0",
            "catalogue": str(folder / "catalogue"),
            "device": {
                "kind": "cpu",
                "count": n_devices,
                "arena": n_models * (entry.facts.n_bytes + (16 << 20)) + KV_BYTES,
                "slab": 8 << 20,
                "prefill_chunk_tokens": PREFILL_CHUNK_TOKENS,
            },
            "prefix_cache": {"enabled": prefix_cache},
            "host": {"cache": 2 * n_models * entry.facts.n_bytes, "kv": KV_BYTES},
        }
        async with served(config, folder) as address, AsyncClient(address) as client:
            yield Smollm2Pool(client, entry, names)


def random_prompt(seed: int, n_tokens: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(100, 40_000) for _ in range(n_tokens))
