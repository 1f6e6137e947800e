"""The prefix cache on real (small) models: a request that is given KV of others yields the tokens that it
yields alone, without the cache.

Prompts of three models begin alike, in float32 and bfloat16, with and without a sliding window. On the small
devices KV is paged, dropped, moved and lost meanwhile.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from tests.node.served_node import KB, SLAB_BYTES, device, served, tiny_entries
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Register, Submit, Unregister
from tokenmux.messages.reports import Tokens
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry
from tokenmux.scheduler.instance.instance import Instance

FAMILIES = {"llama": torch.bfloat16, "gemma2": torch.bfloat16, "qwen3": torch.float32}
CELL = 16
N = 45


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return tiny_entries(tmp_path_factory.mktemp("catalogue"), FAMILIES)


def submits(entries: list[Entry], n: int = N) -> list[Submit]:
    """Requests in turn over the models. Prompts are one of two beginnings, cut anywhere, and up to 30 tokens
    of their own; every third request is sampled."""
    rng = np.random.default_rng(7)
    beginnings = [tuple(int(t) for t in rng.integers(0, 256, size=100)) for _ in range(2)]
    made = []
    for number in range(n):
        own = tuple(int(t) for t in rng.integers(0, 256, size=rng.integers(0, 30)))
        prompt = beginnings[rng.integers(2)][: rng.integers(1, 101)] + own
        sampling = Sampling(temperature=0.8, top_k=40, seed=number) if number % 3 == 0 else Sampling()
        request = Request(
            RequestId(f"r{number}"),
            ModelId(entries[number % len(entries)].name),
            n_prompt=len(prompt),
            max_tokens=int(rng.integers(4, 40)),
            arrival_s=0.0,
            service=ServiceLevel(ttft_s=1.0, tpot_s=0.01),
            tenant="one" if number % 5 else "other",
        )
        made.append(Submit(request, prompt, sampling))
    return made


@pytest.fixture(scope="module")
def alone(entries: list[Entry]) -> dict[RequestId, list[int]]:
    """What each request yields with the device to itself, without the cache."""
    with served(entries, device(entries, n_slabs=200, cell_tokens=CELL)) as body:
        for number, submit in enumerate(submits(entries)):
            body.send(submit)
            body.until_ended(number + 1)
        assert not body.instance.ledger.sharing.device
        return body.tokens


def ask(entry: Entry, name: str, prompt: tuple[int, ...], tenant: str = "one", **cache: object) -> Submit:
    request = Request(RequestId(name), ModelId(entry.name), len(prompt), 20, arrival_s=0.0, tenant=tenant)
    return Submit(request, prompt, Sampling(), **cache)  # type: ignore[arg-type]


def n_cached(instances: Iterable[Instance]) -> int:
    return sum(c.service.n_cached_prompt_tokens for i in instances for c in i.metrics.models.values())


DEVICES = {
    "roomy": {"n_slabs": 200},
    "paging": {"n_slabs": 12},
    "host full": {"n_slabs": 12, "host_kv_bytes": 3 * SLAB_BYTES},
}


@pytest.mark.parametrize("size", DEVICES)
def test_requests_that_share_their_beginnings_yield_what_they_yield_alone(
    entries: list[Entry], alone: dict[RequestId, list[int]], size: str
) -> None:
    with served(entries, device(entries, cell_tokens=CELL, **DEVICES[size]), prefix_cache=True) as body:
        for submit in submits(entries):
            body.send(submit)
        body.until_ended(N)
        assert n_cached([body.instance]) > 0
        body.check_books()
    assert body.tokens == alone


def test_no_token_depends_on_what_requests_ask_of_the_cache(
    entries: list[Entry], alone: dict[RequestId, list[int]]
) -> None:
    """In company, with KV that is paged: requests of three salts, of which some do without the cache."""
    asked = [
        replace(submit, cache_salt=(None, "a", "b")[number % 7 % 3], prefix_cache=number % 4 > 0)
        for number, submit in enumerate(submits(entries))
    ]
    with served(entries, device(entries, cell_tokens=CELL, n_slabs=12), prefix_cache=True) as body:
        for submit in asked:
            body.send(submit)
        body.until_ended(N)
        body.check_books()
    assert body.tokens == alone
    assert sum(body.n_cached.values()) > 0
    assert not any(body.n_cached[submit.request.id] for submit in asked if not submit.prefix_cache)


def test_requests_are_told_what_they_were_given(entries: list[Entry]) -> None:
    prompt, other = tuple(range(100)), tuple(range(100, 0, -1))
    without = {"prefix_cache": False}
    asked: list[tuple[tuple[int, ...], str, dict[str, object], int]] = [
        (prompt, "one", {}, 0),
        (prompt, "one", {}, 96),
        (prompt[:50], "one", {}, 48),
        (prompt, "other", {}, 0),
        (prompt, "one", {"cache_salt": "a"}, 0),
        (prompt, "one", {"cache_salt": "a"}, 96),
        (prompt, "other", {"cache_salt": "a"}, 0),
        (prompt, "one", without, 0),
        (prompt, "one", {"n_prompt_likeliest": 0}, 0),
        (other, "one", without, 0),
        (other, "one", {}, 0),
        (other, "one", {}, 96),
    ]
    tokens: dict[tuple[int, ...], list[int]] = {}
    with served(entries[:1], device(entries, 200, cell_tokens=CELL), prefix_cache=True) as body:
        for number, (of, tenant, options, n_given) in enumerate(asked):
            submit = ask(entries[0], f"r{number}", of, tenant, **options)
            body.send(submit)
            body.until_ended(number + 1)
            assert body.n_cached[submit.request.id] == n_given, (number, options)
            assert body.tokens[submit.request.id] == tokens.setdefault(of, body.tokens[submit.request.id])
        counts = body.instance.metrics.tenant("one")
        assert (counts.n_prefix_hits, counts.n_cached_prompt_tokens) == (4, 96 + 48 + 96 + 96)
        assert body.instance.metrics.tenant("other").n_prefix_hits == 0


@pytest.mark.parametrize("index", [0, 1])
def test_kv_that_was_shared_and_lost_is_computed_again(
    entries: list[Entry], alone: dict[RequestId, list[int]], index: int
) -> None:
    """A device is killed twice in mid-step, while requests move between two that share host memory."""
    small = device(entries, 12, 512 * KB, CELL)
    with served(entries, small, small, prefix_cache=True) as body:
        for submit in submits(entries):
            body.send(submit)
        for n_ended in (5, 15):
            body.until_ended(n_ended)
            body.until(lambda message: isinstance(message, Tokens))
            body.driven.kill(InstanceId(index))
        body.until_ended(N)
        assert n_cached(body.driven.node.pool.instances) > 0
        body.check_books()
    assert body.tokens == alone


def test_other_weights_under_an_old_name_find_no_kv_of_the_old_ones(
    entries: list[Entry], tmp_path: Path
) -> None:
    prompt, sent = tuple(range(100)), entries[0]
    other = Catalogue(tmp_path).register_folder(
        sent.name, tiny.create("llama", tmp_path / "checkpoint", seed=1)
    )
    tokens = []
    for registered in ([other], [sent, other]):
        with served(registered[:1], device(entries, 200, cell_tokens=CELL), prefix_cache=True) as body:
            for number, entry in enumerate(registered):
                if number:
                    body.send(Unregister(ModelId(sent.name)))
                    body.send(Register(entry.facts, str(entry.path)))
                body.send(ask(entry, f"r{number}", prompt))
                body.until_ended(number + 1)
            tokens.append(body.tokens[RequestId(f"r{len(registered) - 1}")])
    assert tokens[0] == tokens[1]
