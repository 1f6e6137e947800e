"""The section of `benchmarks.gpu` that runs a real node with an executor: two models in an arena for one, and
the same tokens as alone."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks import swap as swapping
from benchmarks.gpu_place import Item, Place
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Order, Register, Resize, Submit, Ticket, Unload
from tokenmux.messages.reports import Acknowledged, Broken, Finished, NodeStatus, Report, Reports, Tokens
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.node.node_process import NodeProcess
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE

WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to make."""

    name: str
    model: ModelId
    prompt: tuple[int, ...]
    n_output: int
    sampling: Sampling


@dataclass(slots=True)
class Driver:
    """The front's side of one node."""

    node: NodeProcess
    inbox: SimpleQueue[Report]
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    phases: Counter[RequestPhase] = field(default_factory=Counter)
    n_acknowledged: int = 0
    n_asked: int = 0
    n_swaps: int = 0
    n_discards: int = 0

    def say(self, message: Any) -> None:
        """Send a command, and wait for its acknowledgement."""
        self.node.send(Order(Ticket(0), message))
        self.n_asked += 1
        self.until(lambda: self.n_acknowledged == self.n_asked)

    def submit(self, asks: Sequence[Ask], suffix: str) -> list[str]:
        names = []
        for ask in asks:
            name = f"{ask.name}/{suffix}"
            names.append(name)
            self.tokens[name] = []
            request = Request(
                RequestId(name),
                ask.model,
                n_prompt=len(ask.prompt),
                max_tokens=ask.n_output,
                arrival_s=MonotonicClock().now_s(),
                service=ServiceLevel(1.0, 0.02),
            )
            self.node.send(Order(Ticket(0), Submit(request, ask.prompt, ask.sampling)))
        return names

    def finish(self, names: Sequence[str]) -> list[list[int]]:
        self.until(lambda: all(name in self.ended for name in names))
        return [self.tokens[name] for name in names]

    def listen(self, seconds: float = 0.5) -> None:
        """Receive what is still to come: the node sends its state at most five times a second."""
        ends_s = time.monotonic() + seconds
        while (left := ends_s - time.monotonic()) > 0:
            try:
                self.hear(self.inbox.get(timeout=left))
            except Empty:
                return

    def until(self, done: Any) -> None:
        ends_s = time.monotonic() + WAIT_S
        while not done():
            try:
                self.hear(self.inbox.get(timeout=max(0.0, ends_s - time.monotonic())))
            except Empty:
                raise AssertionError(f"the node said nothing new within {WAIT_S:.0f} s") from None

    def hear(self, message: Report) -> None:
        match message:
            case Tokens():
                drawn = self.tokens[message.request]
                if message.index != len(drawn):
                    raise AssertionError(f"{message.request}: token {message.index} after {len(drawn)}")
                drawn.extend(message.token_ids)
            case Finished():
                if message.reason is not FinishReason.LENGTH:
                    raise AssertionError(f"{message.request} ended with {message.reason}: {message.detail}")
                self.ended.add(message.request)
            case PhaseChanged():
                self.phases[message.phase] += 1
            case NodeStatus():
                self.n_swaps = sum(MODEL_TABLE.named(model.counts)["n_swaps"] for model in message.models)
                self.n_discards = sum(INSTANCE_TABLE.named(d.counts)["n_discards"] for d in message.devices)
            case Acknowledged():
                if message.error:
                    raise AssertionError(message.error)
                self.n_acknowledged += 1
            case Broken():
                raise AssertionError(f"the node broke: {message.detail}")


@contextmanager
def driver_of(place: Place, entries: Sequence[Entry], *, paged_int8: bool = False) -> Iterator[Driver]:
    """A node with all models registered, whose arena holds one of them and the KV of some requests."""
    slab_bytes = slab_of(entries)
    device = DeviceFacts(
        "gpu",
        arena_bytes=arena_of(entries),
        host_kv_bytes=64 * slab_bytes,
        copy_in_bytes_per_s=2e10,
        copy_out_bytes_per_s=2e10,
        memory_bytes_per_s=2e12,
        flops_per_s=2e14,
        slab_bytes=slab_bytes,
        prefill_chunk_tokens=64,
    )
    host = HostFacts(sum(entry.facts.n_bytes for entry in entries), 1e9)
    inbox: SimpleQueue[Report] = SimpleQueue()
    on_device = DeviceSetup(
        device,
        "cpu" if place.interpreted else "cuda",
        paged_kv="int8" if paged_int8 else "exact",
    )
    setup = NodeSetup((on_device,), host, device.host_kv_bytes)

    def receive(batch: Reports) -> None:
        for report in batch.reports:
            inbox.put(report)

    node = NodeProcess(setup, receive)
    driver = Driver(node, inbox)
    try:
        for entry in entries:
            driver.say(Register(entry.facts, str(entry.path)))
        yield driver
    finally:
        node.close()


def slab_of(entries: Sequence[Entry]) -> int:
    return 4 * max(entry.facts.kv.block_bytes for entry in entries)


def arena_of(entries: Sequence[Entry]) -> int:
    """The largest model, and KV of about two long requests: a third has to wait, or one is paged out."""
    n_blocks = max(entry.facts.kv.blocks_for(320) for entry in entries)
    return max(entry.facts.n_bytes for entry in entries) + (2 * n_blocks // 3 + 1) * slab_of(entries)


def node(place: Place) -> list[Item]:
    if place.interpreted:
        configs = [tiny.FAMILIES["llama"](), tiny.FAMILIES["gemma2"]()]
    else:
        configs = [swapping.SHAPES["20M"], small_of_128()]
    return [
        Item("two_models", partial(two_models, place, configs), 20.0 * (not place.interpreted)),
        *([] if place.interpreted else [Item("paged_in_int8", partial(paged_in_int8, place, configs), 15.0)]),
    ]


def small_of_128() -> LlamaConfig:
    """Heads of 128, so that it uses other kernels than the first."""
    return LlamaConfig(
        vocab_size=16_384,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        tie_word_embeddings=True,
    )


def asks_for(entries: Sequence[Entry], n_each: int, n_output: int) -> list[Ask]:
    generator = torch.Generator().manual_seed(11)
    asks = []
    for index in range(n_each * len(entries)):
        entry = entries[index % len(entries)]
        n_prompt = (17, 90, 64, 3)[index % 4]
        prompt = torch.randint(3, entry.facts.vocab_size - 3, (n_prompt,), generator=generator).tolist()
        sampling = Sampling() if index % 3 else Sampling(temperature=1.0, top_p=0.9, seed=index)
        asks.append(Ask(f"r{index}", entry.facts.id, tuple(prompt), n_output, sampling))
    return asks


def two_models(place: Place, configs: Sequence[Any]) -> Mapping[str, Any]:
    """Requests for two models at once, alone, and across two resizes: exactly the same tokens, and nearly
    all of torch's."""
    n_each, n_output = (2, 12) if place.interpreted else (4, 160)
    with tempfile.TemporaryDirectory(prefix="tokenmux-gpu-node-") as folder:
        entries = [
            swapping.make_entry(name, config, Path(folder))
            for name, config in zip("ab", configs, strict=True)
        ]
        asks = asks_for(entries, n_each, n_output)
        opened = time.perf_counter()
        with driver_of(place, entries) as driver:
            opened = time.perf_counter() - opened
            began = time.perf_counter()
            first = driver.finish(driver.submit(asks[:1], "first"))[0]
            first_s = time.perf_counter() - began
            alone = [driver.finish(driver.submit([ask], "alone"))[0] for ask in asks]
            if alone[0] != first:
                raise AssertionError("the first request yields other tokens the second time")
            for entry in entries:
                driver.say(Unload(entry.facts.id))
            driver.listen()
            swaps, paged = driver.n_swaps, driver.phases[RequestPhase.PAGED_OUT]
            began = time.perf_counter()
            company = driver.finish(driver.submit(asks, "company"))
            company_s = time.perf_counter() - began
            driver.listen()
            found = {
                "swaps_in_company": driver.n_swaps - swaps,
                "paged_out_in_company": driver.phases[RequestPhase.PAGED_OUT] - paged,
            }
            if found["swaps_in_company"] < 2:
                raise AssertionError(f"models were not swapped: {found}")
            names = driver.submit(asks, "resized")
            arena = arena_of(entries)
            driver.until(lambda: any(driver.tokens[name] for name in names))
            driver.say(Resize(2 * arena))
            driver.say(Resize(arena))
            resized = driver.finish(names)
            for what, others in (("in company", company), ("across resizes", resized)):
                wrong = [ask.name for ask, a, b in zip(asks, alone, others, strict=True) if a != b]
                if wrong:
                    raise AssertionError(f"{wrong} yield other tokens {what} than alone; {found}")
            found |= {"discards": driver.n_discards}
            closing = time.perf_counter()
        closed_s = time.perf_counter() - closing
        greedy = [
            (ask, tokens) for ask, tokens in zip(asks, alone, strict=True) if not ask.sampling.temperature
        ]
        shares = [same_as_torch(place, entries, ask, tokens) for ask, tokens in greedy[:4]]
    # In 16 bits, kernels and torch round differently, and random weights have near ties, after which tokens
    # diverge.
    if shares and max(shares) < 0.1:
        raise AssertionError(
            f"tokens are not those of the torch path: shares of the same beginning {shares}; {found}"
        )
    n_tokens = sum(map(len, company))
    return {
        **found,
        "tokens_each": n_output,
        "distinct": len({tuple(tokens) for tokens in alone}),
        "same_beginning_as_torch": sum(shares) / len(shares),
        "open_and_register_s": opened,
        "first_request_s": first_s,
        "close_s": closed_s,
        "company_s": company_s,
        "company_tokens_per_s": n_tokens / company_s,
    }


@torch.inference_mode()
def same_as_torch(place: Place, entries: Sequence[Entry], ask: Ask, tokens: Sequence[int]) -> float:
    """Share of the request's tokens, from the first, that equal those of torch's own attention on the
    processor, without any kernel."""
    entry = next(entry for entry in entries if entry.facts.id == ask.model)
    image = torch.empty(entry.facts.n_bytes, dtype=torch.uint8)
    from tokenmux.models.weights.image import DTYPES, read_image

    read_image(entry.manifest, memoryview(image.numpy().data), lambda _: None)
    shape = entry.facts.kv
    runner = Runner(entry.skeleton(), shape, prefill_chunk_tokens=64)
    runner.bind(image)
    n = min(len(tokens), 24)
    blocks = list(range(shape.blocks_for(len(ask.prompt) + n)))
    kv = torch.zeros(
        len(blocks),
        shape.n_layers,
        2,
        shape.n_kv_heads,
        shape.block_size,
        shape.head_dim,
        dtype=DTYPES[entry.manifest.dtype],
    )
    known = list(ask.prompt)
    cached = 0
    for index in range(n):
        (drawn,) = runner.step(runner.prepare([Segment(known[cached:], cached, len(ask.prompt), blocks)], kv))
        if drawn != tokens[index]:
            return index / n
        cached = len(known)
        known.append(int(drawn))
    return 1.0


def paged_in_int8(place: Place, configs: Sequence[Any]) -> Mapping[str, Any]:
    """Not exact by design. Every request ends, with as many tokens as it asked for."""
    with tempfile.TemporaryDirectory(prefix="tokenmux-gpu-node-") as folder:
        entries = [
            swapping.make_entry(name, config, Path(folder))
            for name, config in zip("ab", configs, strict=True)
        ]
        asks = asks_for(entries, 4, 120)
        with driver_of(place, entries, paged_int8=True) as driver:
            served = driver.finish(driver.submit(asks, "company"))
            if any(len(tokens) != 120 for tokens in served):
                raise AssertionError("a request has too few tokens")
            return {"swaps": driver.n_swaps, "paged_out": driver.phases[RequestPhase.PAGED_OUT]}
