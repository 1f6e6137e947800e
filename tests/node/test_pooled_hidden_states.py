"""Hidden states on real (small) models: a request is told the bits that it is told alone, among requests that
generate, while KV is paged and dropped, and where the prefix cache has the beginning of its prompt."""

import pytest
import torch

from tests.node.served_node import device, served, tiny_entries
from tokenmux.core.facts import ModelId
from tokenmux.core.pooling import PooledRows, PoolingKind
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.commands import Submit
from tokenmux.models.catalogue.entry import Entry

FAMILIES = {"qwen3": torch.bfloat16, "gemma2": torch.float32}
KINDS: tuple[PoolingKind | None, ...] = (None, "mean", "last", "first", None)
CELL = 16
N = 40


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return tiny_entries(tmp_path_factory.mktemp("catalogue"), FAMILIES)


def submits(entries: list[Entry]) -> list[Submit]:
    """Requests in turn over the models, two of five of which generate. All prompts of a model begin alike."""
    made = []
    for number in range(N):
        kind = KINDS[number % len(KINDS)]
        prompt = (*(i % 250 for i in range(20 + number * 37 % 240)), number)
        request = Request(
            RequestId(f"r{number}"),
            ModelId(entries[number % len(entries)].name),
            n_prompt=len(prompt),
            max_tokens=30 if kind is None else 1,
            arrival_s=0.0,
        )
        made.append(Submit(request, prompt, Sampling(), pooling=kind, draws=kind is None))
    return made


def asked(entries: list[Entry]) -> set[RequestId]:
    return {submit.request.id for submit in submits(entries) if submit.pooling is not None}


@pytest.fixture(scope="module")
def alone(entries: list[Entry]) -> dict[RequestId, list[PooledRows]]:
    """What each request is told with the device to itself, without the cache."""
    with served(entries, device(entries, n_slabs=200, cell_tokens=CELL)) as body:
        for number, submit in enumerate(submits(entries)):
            body.send(submit)
            body.until_ended(number + 1)
        assert body.pooled.keys() == asked(entries)
        return body.pooled


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_company_paging_and_the_prefix_cache_change_no_bit(
    entries: list[Entry], alone: dict[RequestId, list[PooledRows]], prefix_cache: bool
) -> None:
    small = device(entries, n_slabs=12, cell_tokens=CELL)
    with served(entries, small, prefix_cache=prefix_cache) as body:
        for submit in submits(entries):
            body.send(submit)
        body.until_ended(N)
        body.check_books()
        counts = [body.instance.metrics.tenant("default")]
    assert body.pooled == alone
    assert not body.tokens.keys() & asked(entries), "they draw nothing"
    assert all(end.reason is FinishReason.LENGTH for end in body.ends.values())
    assert (sum(one.n_prefix_hits for one in counts) > 0) == prefix_cache


def test_the_end_of_a_prompt_is_enough_where_the_cache_has_the_rest(entries: list[Entry]) -> None:
    """A request for the last hidden state is given KV, and is told the same; one for the mean is not."""
    prompt = tuple(range(100))

    def ask(name: str, kind: PoolingKind) -> Submit:
        request = Request(RequestId(name), ModelId(entries[0].name), len(prompt), 1, arrival_s=0.0)
        return Submit(request, prompt, Sampling(), pooling=kind, draws=False)

    hits = []
    with served(entries[:1], device(entries, 200, cell_tokens=CELL), prefix_cache=True) as body:
        for number, (name, kind) in enumerate((("a", "last"), ("b", "last"), ("c", "mean"))):
            body.send(ask(name, kind))  # type: ignore[arg-type]
            body.until_ended(number + 1)
            hits.append(body.instance.metrics.tenant("default").n_prefix_hits)
    assert hits == [0, 1, 1]
    assert body.pooled[RequestId("a")] == body.pooled[RequestId("b")]
    assert sum(rows.n for rows in body.pooled[RequestId("c")]) == len(prompt)
