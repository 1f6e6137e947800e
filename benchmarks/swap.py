"""Activating a model compared with copying its bytes: what the engine adds to the physical limit of a swap.

    python -m benchmarks.swap [--quick]

Models of Llama's architecture in three sizes (random weights; the middle one has the shape of SmolLM2-135M,
with its 272 tensors) are swapped in and out by the real engine on the virtual GPU: `Load` goes in, and the
clock stops when the model could step. Between two swaps the same bytes are copied from the same host cache by
one plain memmove into memory that was touched before. Ratios are taken pair by pair, so that they hold when
the machine's speed drifts.
"""

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import report
from tokenmux.core.clock import Clock
from tokenmux.core.cost import RooflineCost
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelFacts
from tokenmux.core.phases import Residency
from tokenmux.core.request import RequestId
from tokenmux.device.cpu import CpuDevice
from tokenmux.device.cuda.device import CudaDevice
from tokenmux.device.device_protocol import OperationDone
from tokenmux.device.memory import Memory
from tokenmux.executor.engine import Engine
from tokenmux.executor.model_host import ModelHost
from tokenmux.executor.monotonic_clock import MonotonicClock
from tokenmux.messages.commands import Load, Order, Register, Ticket, Unload
from tokenmux.messages.reports import Report
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.catalogue.tiny import byte_tokenizer
from tokenmux.models.transformers_log import quiet_transformers
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.policy.slack import SlackPolicy

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
    """The real engine on the virtual GPU. Its inbox is emptied by hand, so that the clock stops at the
    right event."""

    def __init__(self, entry: Entry) -> None:
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
        self._target: Memory | None = None
        self._inbox: SimpleQueue[Callable[[Engine], None]] = SimpleQueue()
        clock = MonotonicClock()
        self.instance = Instance(
            device, HostCache(host.cache_bytes), SlackPolicy(), RooflineCost(device, host)
        )
        self.host = ModelHost(self.instance, clock, {})
        self.device = self._make_device(device, clock)
        self.engine = Engine(self.instance, self.device, clock, self.host, self._said, {})
        self.engine.receive(Order(Ticket(0), Register(facts, str(entry.path))))
        self.engine.pump()
        self._run_until(Residency.HOST)

    def _make_device(self, facts: DeviceFacts, clock: Clock) -> CpuDevice | CudaDevice:
        return CpuDevice(facts, self.instance.ledger, clock, self, self.host)

    def swap(self) -> float:
        """Seconds from the command to a model that could step."""
        began = time.perf_counter()
        self.engine.receive(Order(Ticket(0), Load(self.model.id)))
        self.engine.pump()
        self._run_until(Residency.RESIDENT)
        seconds = time.perf_counter() - began
        self.engine.receive(Order(Ticket(0), Unload(self.model.id)))
        self.engine.pump()
        return seconds

    def copy(self) -> float:
        """Seconds of one plain copy of the same bytes, out of the same host cache."""
        assert isinstance(self.device, CpuDevice)
        if self._target is None:
            self._target = Memory(self.model.n_bytes, touch=True)
        source = self.device.image_address(self.model.images[0].id)
        began = time.perf_counter()
        ctypes.memmove(self._target.address, source, self.model.n_bytes)
        return time.perf_counter() - began

    def repoint(self) -> float:
        """Seconds of binding the skeleton's tensors; the model must be resident."""
        began = time.perf_counter()
        self.host.bind(self.model)
        return time.perf_counter() - began

    def load(self) -> None:
        self.engine.receive(Order(Ticket(0), Load(self.model.id)))
        self.engine.pump()
        self._run_until(Residency.RESIDENT)

    def close(self) -> None:
        self.device.close()
        if self._target is not None:
            self._target.close()

    def _run_until(self, residency: Residency) -> None:
        while self.instance.models[self.model.id].residency is not residency:
            self._inbox.get()(self.engine)
            self.engine.pump()

    def _said(self, messages: list[Report]) -> None: ...

    # the device's `Post`
    def done(self, completion: OperationDone) -> None:
        self._inbox.put(lambda engine: engine.done(completion))

    def progress(self, operation: int, share: float) -> None:
        self._inbox.put(lambda engine: engine.progress(operation, share))

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None: ...

    def broken(self, operation: int, error: BaseException) -> None:
        self._inbox.put(lambda _engine: _raise(error))


def _raise(error: BaseException) -> None:
    raise error


def make_entry(name: str, config: LlamaConfig, folder: Path) -> Entry:
    """A catalogue entry of that shape with random weights in bfloat16."""
    checkpoint = folder / f"checkpoint-{name}"
    torch.manual_seed(0)
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(checkpoint)
    byte_tokenizer().save_pretrained(checkpoint)
    return Catalogue(folder / "catalogue").register_folder(name, checkpoint)


def measure(entry: Entry, repetitions: int) -> Swaps:
    bench = Bench(entry)
    try:
        bench.swap()
        bench.copy()
        pairs = [(bench.swap(), bench.copy()) for _ in range(repetitions)]
        bench.load()
        repoint = [bench.repoint() for _ in range(repetitions)]
    finally:
        bench.close()
    return Swaps([a for a, _ in pairs], [c for _, c in pairs], repoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--quick", action="store_true", help="a look: the small and the middle size, 10 swaps each"
    )
    quick = parser.parse_args().quick
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
