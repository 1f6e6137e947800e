"""Tokens of models that are swapped all the time, compared with the tokens of the same models alone.

    python -m benchmarks.swap_exactness [--quick]

For each family of `tokenmux.models.catalogue.tiny` and for bfloat16 and float32, a node and its executor
serve the model in an arena with little room. A cycle unloads the model and loads it again beside neighbours
of other sizes that come and go, so that its weights return at another offset. Requests are served in it,
greedy and sampled, and in every third cycle the model is unloaded in mid-generation while a neighbour's
request takes the room of its KV, which is paged out and comes back. Every token is compared with those of the
model alone, before the first swap.
"""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks import report
from benchmarks.driven_node import DrivenNode
from tokenmux.core.effects import CopyEnded, Effects
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.core.sampling import Sampling
from tokenmux.core.started import StartedActivation, StartedPageOut
from tokenmux.messages.commands import Order, Submit, Ticket, Unload
from tokenmux.messages.reports import Finished, Tokens
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry

DTYPES = ("bfloat16", "float32")
N_CYCLES = 300
N_CYCLES_QUICK = 10
N_PROMPTS = 12
N_AT_ONCE = 2
SLAB_BYTES = 256 << 10
N_SLABS = 1
CHUNK_TOKENS = 32
BESIDE = ("llama", "gpt2", "gemma3")
"""Families of the neighbours: images of three sizes."""
TARGETS = {
    "n_changed_tokens": report.Target(source="swapping does not change a token", at_most=0),
    "fewest_swaps": report.Target(
        source="cycles of load and unload, each family and type", at_least=N_CYCLES
    ),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request that is served again and again."""

    tokens: tuple[int, ...]
    n_output: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Exactness:
    """The result of one model's cycles."""

    n_swaps: int
    """Completed activations of the model, not counting the first."""
    n_offsets: int
    """Number of different places in the arena at which its weights were."""
    n_page_outs: int
    """Copies of KV out of the arena."""
    n_tokens: int
    n_changed_tokens: int


class Bench:
    """A node on the virtual GPU that serves prompts and notes where weights lie."""

    def __init__(self, device: DeviceFacts) -> None:
        self.driven = DrivenNode(device, HostFacts(cache_bytes=64 << 20, fetch_bytes_per_s=1e9))
        self.driven.node.observers.append(self._note)
        self._n_submitted = 0
        self.offsets: dict[ModelId, list[int]] = {}
        self.n_page_outs = 0

    def close(self) -> None:
        self.driven.close()

    def serve(
        self, prompts: Sequence[tuple[ModelId, Prompt]], sent_away: ModelId | None = None
    ) -> list[list[int]]:
        """The tokens of each prompt, all served at once. `sent_away` is unloaded when its first token has
        been drawn."""
        tokens: dict[RequestId, list[int]] = {}
        model_of: dict[RequestId, ModelId] = {}
        for model, prompt in prompts:
            request = Request(
                RequestId(f"r{self._n_submitted}"),
                model,
                len(prompt.tokens),
                prompt.n_output,
                self.driven.clock.now_s(),
                ServiceLevel(ttft_s=1.0, tpot_s=0.01),
            )
            self._n_submitted += 1
            tokens[request.id], model_of[request.id] = [], model
            self.driven.node.receive(Order(Ticket(0), Submit(request, prompt.tokens, prompt.sampling)))
        left = len(tokens)
        said = self.driven.said
        said.clear()
        self.driven.node.pump()
        while left:
            self.driven.turn()
            messages = said.copy()
            said.clear()
            for message in messages:
                match message:
                    case Tokens(request=id, token_ids=token_ids):
                        tokens[id].extend(token_ids)
                        if model_of[id] == sent_away:
                            self.driven.tell(Unload(sent_away))
                            sent_away = None
                    case Finished(request=id, reason=reason):
                        if reason is not FinishReason.LENGTH:
                            raise RuntimeError(f"{id} of {model_of[id]} ended: {reason.value}")
                        left -= 1
        return list(tokens.values())

    def _note(self, _index: int, _at_s: float, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case CopyEnded(StartedActivation(model=model)):
                    ledger = self.driven.instance.ledger
                    offset = ledger.arena.offset(ledger.extent(model.images[0].id))
                    self.offsets.setdefault(model.id, []).append(offset)
                case CopyEnded(StartedPageOut()):
                    self.n_page_outs += 1


def device_facts(arena_bytes: int) -> DeviceFacts:
    return DeviceFacts(
        name="cpu",
        arena_bytes=arena_bytes,
        host_kv_bytes=4 << 20,
        copy_in_bytes_per_s=1e10,
        copy_out_bytes_per_s=1e10,
        memory_bytes_per_s=1e10,
        flops_per_s=1e11,
        slab_bytes=SLAB_BYTES,
        prefill_chunk_tokens=CHUNK_TOKENS,
    )


def make_prompts(seed: int) -> list[Prompt]:
    """Prompts of up to three chunks, every second one sampled."""
    random = Random(seed)
    return [
        Prompt(
            tuple(random.randrange(256) for _ in range(random.randint(1, 70))),
            random.randint(3, 6),
            Sampling(0.8, top_k=40, top_p=0.95, seed=number) if number % 2 else Sampling(),
        )
        for number in range(N_PROMPTS)
    ]


def measure(entry: Entry, neighbours: Sequence[Entry], n_cycles: int, seed: int = 0) -> Exactness:
    """Serve `entry` alone, then through `n_cycles` cycles of unloading and loading beside its neighbours."""
    prompts = make_prompts(seed)
    model = ModelId(entry.name)
    with closing(Bench(device_facts(entry.facts.n_bytes + (8 << 20)))) as roomy:
        roomy.driven.register(entry)
        alone = [roomy.serve([(model, prompt)])[0] for prompt in prompts]
    random = Random(seed)
    beside = [ModelId(neighbour.name) for neighbour in neighbours]
    arena_bytes = entry.facts.n_bytes + max(n.facts.n_bytes for n in neighbours) + N_SLABS * SLAB_BYTES
    n_tokens = n_changed = 0
    with closing(Bench(device_facts(arena_bytes))) as small:
        for known in (entry, *neighbours):
            small.driven.register(known)
        for cycle in range(n_cycles + 1):
            for name in (model, *beside):
                small.driven.unload(name)
            neighbour = random.choice(beside)
            for name in (neighbour, model) if random.random() < 0.7 else (model, neighbour):
                small.driven.load(name)
            chosen = random.sample(range(N_PROMPTS), N_AT_ONCE)
            wanted = [(model, prompts[number]) for number in chosen]
            if cycle % 3 == 0:
                served = small.serve([*wanted, (neighbour, random.choice(prompts))], model)[:N_AT_ONCE]
            else:
                served = small.serve(wanted)
            for number, tokens in zip(chosen, served, strict=True):
                n_tokens += len(tokens)
                n_changed += sum(a != b for a, b in zip(tokens, alone[number], strict=True))
        offsets, n_page_outs = small.offsets[model], small.n_page_outs
    return Exactness(len(offsets) - 1, len(set(offsets)), n_page_outs, n_tokens, n_changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"a look: {N_CYCLES_QUICK} cycles of each model")
    n_cycles = N_CYCLES_QUICK if parser.parse_args().quick else N_CYCLES
    results: dict[tuple[str, str], Exactness] = {}
    with tempfile.TemporaryDirectory(prefix="tokenmux-swap-exactness-") as name:
        folder = Path(name)
        catalogue = Catalogue(folder / "catalogue")
        sources = {
            family: tiny.create(family, folder / family, seed=number)
            for number, family in enumerate(tiny.FAMILIES)
        }
        neighbours = [catalogue.register_folder(f"beside-{family}", sources[family]) for family in BESIDE]
        for family, source in sources.items():
            for dtype in DTYPES:
                entry = catalogue.register_folder(f"{family}-{dtype}", source, dtype=dtype)
                results[family, dtype] = measure(entry, neighbours, n_cycles)
    report.table(
        "tokens of swapped models that differ from those of the same model alone",
        ["family", "type", "swaps", "places", "page-outs", "tokens", "changed"],
        [
            [*key, r.n_swaps, r.n_offsets, r.n_page_outs, r.n_tokens, r.n_changed_tokens]
            for key, r in results.items()
        ],
    )
    fewest = min(r.n_swaps for r in results.values())
    metrics: dict[str, float] = {
        "n_swaps": sum(r.n_swaps for r in results.values()),
        "n_page_outs": sum(r.n_page_outs for r in results.values()),
        "n_tokens": sum(r.n_tokens for r in results.values()),
        "n_changed_tokens": sum(r.n_changed_tokens for r in results.values()),
    }
    report.finish(
        "swap_exactness", metrics if n_cycles < N_CYCLES else metrics | {"fewest_swaps": fewest}, TARGETS
    )


if __name__ == "__main__":
    main()
