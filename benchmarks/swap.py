"""Activating a model compared with copying its bytes: what the engine adds to the physical limit of a swap.

    python -m benchmarks.swap [--quick]

Models of Llama's architecture in three sizes (random weights; the middle one has the shape of SmolLM2-135M,
with its 272 tensors) are swapped in and out by a node and its executor on the virtual GPU: `Load` goes in,
and the clock stops when the model could step. Between two swaps the same bytes are copied from the same host
cache by one plain memmove into memory that was touched before. Ratios are taken pair by pair, so that they
hold when the machine's speed drifts.
"""

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import report
from benchmarks.driven_node import DrivenNode, run_as_an_executor_would
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelFacts
from tokenmux.core.memory_budgets import DeviceKind
from tokenmux.device.cpu import CpuDevice
from tokenmux.device.memory import Memory
from tokenmux.messages.commands import Unload
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.catalogue.tiny import byte_tokenizer
from tokenmux.models.transformers_log import quiet_transformers

SMOLLM2_135M = "135M"
SHAPES = {
    "20M": LlamaConfig(
        vocab_size=16384,
        hidden_size=320,
        intermediate_size=864,
        num_hidden_layers=12,
        num_attention_heads=5,
        num_key_value_heads=5,
        tie_word_embeddings=True,
    ),
    SMOLLM2_135M: LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "360M": LlamaConfig(
        vocab_size=49152,
        hidden_size=960,
        intermediate_size=2560,
        num_hidden_layers=32,
        num_attention_heads=15,
        num_key_value_heads=5,
        tie_word_embeddings=True,
    ),
}
TARGETS = {
    "activation_over_copy": report.Target(source="swap time over pure copy time, SmolLM2-135M", at_most=1.3),
    "repoint_ms": report.Target(source="re-pointing a skeleton of 272 tensors", at_most=10.0),
}
SLAB_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Swaps:
    """Seconds, one entry per repetition."""

    activation_s: list[float]
    copy_s: list[float]
    repoint_s: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / c for a, c in zip(self.activation_s, self.copy_s, strict=True)]


class Bench:
    """One model on a device with room for it, swapped by hand."""

    def __init__(self, entry: Entry, kind: DeviceKind = "cpu") -> None:
        facts = entry.facts
        device = DeviceFacts(
            name="cpu",
            arena_bytes=facts.n_bytes + 8 * SLAB_BYTES,
            host_kv_bytes=SLAB_BYTES,
            copy_in_bytes_per_s=1e10,
            copy_out_bytes_per_s=1e10,
            memory_bytes_per_s=1e10,
            flops_per_s=1e11,
            slab_bytes=SLAB_BYTES,
        )
        host = HostFacts(cache_bytes=facts.n_bytes, fetch_bytes_per_s=1e9)
        self.model: ModelFacts = facts
        self._driven = DrivenNode(device, host, kind)
        self._driven.register(entry)

    def swap(self) -> float:
        """Seconds from the command to a model that could step."""
        began = time.perf_counter()
        self._driven.load(self.model.id)
        seconds = time.perf_counter() - began
        self._driven.tell(Unload(self.model.id))
        return seconds

    def repoint(self) -> float:
        """Seconds of binding the skeleton's tensors; the model must be resident."""
        models = self._driven.executor.models
        offset, _ = models.weights_span(self.model.id)
        began = time.perf_counter()
        models.bind(self.model.id, offset)
        return time.perf_counter() - began

    def load(self) -> None:
        self._driven.load(self.model.id)

    def close(self) -> None:
        self._driven.close()

    @contextmanager
    def plain_copy(self) -> Iterator[Callable[[], float]]:
        """A function that takes the seconds of one plain copy of the same bytes, out of the same host
        cache."""
        device = self._driven.executor.device
        assert isinstance(device, CpuDevice)
        target = Memory(self.model.n_bytes, touch=True)

        def copy() -> float:
            source = device.image_address(self.model.images[0].id)
            began = time.perf_counter()
            ctypes.memmove(target.address, source, self.model.n_bytes)
            return time.perf_counter() - began

        try:
            yield copy
        finally:
            target.close()


def make_entry(name: str, config: LlamaConfig, folder: Path) -> Entry:
    """A catalogue entry of that shape with random weights in bfloat16."""
    checkpoint = folder / f"checkpoint-{name}"
    torch.manual_seed(0)
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(checkpoint)
    byte_tokenizer().save_pretrained(checkpoint)
    return Catalogue(folder / "catalogue").register_folder(name, checkpoint)


def pairs_of(
    swap: Callable[[], float], copy: Callable[[], float], repetitions: int
) -> list[tuple[float, float]]:
    """Seconds of a swap and of a copy, one right after the other so that both meet the same machine. The
    first of each is not counted."""
    swap()
    copy()
    return [(swap(), copy()) for _ in range(repetitions)]


def measure(entry: Entry, repetitions: int) -> Swaps:
    with closing(Bench(entry)) as bench:
        with bench.plain_copy() as copy:
            pairs = pairs_of(bench.swap, copy, repetitions)
        bench.load()
        repoint = [bench.repoint() for _ in range(repetitions)]
    return Swaps([a for a, _ in pairs], [c for _, c in pairs], repoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="a look: the small and the middle size, 10 swaps each"
    )
    quick = parser.parse_args().quick
    run_as_an_executor_would("benchmarks.swap")
    names = list(SHAPES)[:2] if quick else list(SHAPES)
    metrics: dict[str, float] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="tokenmux-swap-") as folder:
        for name in names:
            entry = make_entry(name, SHAPES[name], Path(folder))
            swaps = measure(entry, 10 if quick else 40)
            suffix = "" if name == SMOLLM2_135M else f"_{name}"
            ratio = report.spread(f"activation_over_copy{suffix}", swaps.ratios)
            metrics |= ratio
            metrics |= report.spread(f"repoint_ms{suffix}", [1e3 * s for s in swaps.repoint_s])
            activation = report.spread("ms", [1e3 * s for s in swaps.activation_s])["ms"]
            copy = report.spread("ms", [1e3 * s for s in swaps.copy_s])["ms"]
            rows.append(
                [
                    name,
                    entry.facts.n_bytes / 1e6,
                    len(entry.manifest.tensors),
                    copy,
                    activation,
                    *ratio.values(),
                    metrics[f"repoint_ms{suffix}"],
                ]
            )
    report.table(
        "activation against one plain copy of the same bytes",
        ["model", "MB", "tensors", "copy ms", "activation ms", "ratio", "p20", "p80", "of it re-pointing ms"],
        rows,
    )
    report.finish("swap", metrics, TARGETS)


if __name__ == "__main__":
    main()
