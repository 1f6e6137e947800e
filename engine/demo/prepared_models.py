"""The demo's catalogue: one real model registered several times, like fine-tunes of one base, and small ones.

SmolLM2-135M-Instruct is obtained once (`tokenmux.demo.real_checkpoint`); the small models of other
architectures get random weights. Everything is kept in the cache folder, so that a second run begins at once.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tokenmux.core.facts import ModelFacts
from tokenmux.core.progress import Progress as ShowProgress
from tokenmux.demo.real_checkpoint import obtain_demo_checkpoint
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue

REAL = tuple(f"smollm2-{name}" for name in ("base", "legal", "medical", "kitchen", "travel", "poetry"))
SMALL = ("qwen3", "gemma2", "mistral", "gpt2", "phi3", "qwen2_moe")
_DEVICE_SHARE = 1 / 3
_SLAB_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class DemoModels:
    """The models of the catalogue in `root`."""

    root: Path
    facts: tuple[ModelFacts, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The real models first."""
        return (*REAL, *(f"tiny-{family}" for family in SMALL))

    @property
    def real(self) -> tuple[str, ...]:
        return REAL

    def kinds(self) -> list[str]:
        """One model of each architecture: copies of one base take the same time for a step."""
        return [REAL[0], *self.names[len(REAL) :]]

    @property
    def total_bytes(self) -> int:
        return sum(facts.n_bytes for facts in self.facts)

    @property
    def arena_bytes(self) -> int:
        """Memory of each device: about a third of what all models would take."""
        return int(self.total_bytes * _DEVICE_SHARE)

    def host_bytes(self, n_devices: int) -> int:
        """Memory of this machine that the weights, the devices and paged-out KV take together."""
        return self.total_bytes + 2 * n_devices * self.arena_bytes

    def pool_config(self, n_devices: int = 1) -> dict[str, object]:
        """The `pool.yaml` of the demo's server."""
        return {
            "listen": "127.0.0.1:0",
            "catalogue": str(self.root),
            "device": {
                "kind": "cpu",
                "count": n_devices,
                "arena": self.arena_bytes,
                "slab": _SLAB_BYTES,
                "prefill_chunk_tokens": 128,
            },
            "host": {"cache": 2 * self.total_bytes, "kv": n_devices * self.arena_bytes},
        }


def prepare(cache: Path, console: Console) -> DemoModels:
    """Obtain, convert and register what is missing, with progress bars. Raises TokenmuxError."""
    catalogue = Catalogue(cache / "demo")
    models = DemoModels(cache / "demo", ())
    present = set(catalogue.stored.names())
    missing = [name for name in models.names if name not in present]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        overall = bars.add_task("preparing models", total=len(missing) + 1)
        detail = bars.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(detail, description=what, completed=done, total=total)

        checkpoint = obtain_demo_checkpoint(cache, show)
        bars.advance(overall)
        for name in missing:
            bars.update(overall, description=f"registering {name}")
            if name in REAL:
                catalogue.register_folder(name, checkpoint, progress=show)
            else:
                _register_small(catalogue, name, cache / "tiny", show)
            bars.advance(overall)
    return DemoModels(models.root, tuple(catalogue.stored.get(name).facts for name in models.names))


def _register_small(catalogue: Catalogue, name: str, folder: Path, show: ShowProgress) -> None:
    """Make a checkpoint with random weights and register it. An incomplete one of an earlier run is
    replaced."""
    shutil.rmtree(folder / name, ignore_errors=True)
    catalogue.register_folder(name, tiny.create(name.removeprefix("tiny-"), folder / name), progress=show)
