"""A pool that is resized while it serves: random worlds on virtual time, and the memory and the tokens of
real devices."""

import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device.cuda.fake_gpu import FakeGpu
from tests.node.served_node import KB, SLAB_BYTES, Served, served
from tests.node.served_node import device as real_device
from tests.node.test_exact_tokens import entries, submits
from tests.scheduler.policy.test_progress import HOST, MB, device, random_model, traffic
from tokenmux.core.errors import DoesNotFit, ErrorCode
from tokenmux.core.request import FinishReason, Request, RequestId
from tokenmux.executor import executor
from tokenmux.messages.commands import Register, Resize, Ticket
from tokenmux.messages.reports import Acknowledged, Finished, Tokens
from tokenmux.models.catalogue.entry import Entry
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.arena import EXTENT_ALIGNMENT
from tokenmux.scheduler.memory.capacity import check_request
from tokenmux.scheduler.policy.registry import SERVED
from tokenmux.testing.virtual_node import NodeOnVirtualTime, setup_of

__all__ = ["entries"]


def is_admitted(instance: Instance, request: Request) -> bool:
    """As the server decides: it has to fit the present size and, while a resize is going on, the one to
    come."""
    model = instance.models[request.model].facts
    sizes = {instance.device.arena_bytes, instance.resize_bytes or instance.device.arena_bytes}
    try:
        for arena_bytes in sizes:
            facts = replace(instance.device, arena_bytes=arena_bytes)
            check_request(facts, model, request.n_prompt + request.max_tokens)
    except DoesNotFit:
        return False
    return True


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    arena_mb=st.integers(30, 120),
    host_kv_mb=st.sampled_from([0, 2, 10, 100]),
    n_models=st.integers(1, 5),
    policy=st.sampled_from(SERVED),
    sizes_mb=st.lists(st.integers(10, 160), min_size=1, max_size=8),
)
def test_random_worlds_with_resizes_end_every_request(
    seed: int, arena_mb: int, host_kv_mb: int, n_models: int, policy: str, sizes_mb: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    models = [random_model(rng, i, max(3, arena_mb - 24)) for i in range(n_models)]
    arrivals = traffic(rng, models, 30)
    facts = device(arena_mb, host_kv_mb)
    body = NodeOnVirtualTime(
        setup_of(facts, host=HOST, policy=policy), {a.request.id: a.n_output for a in arrivals}
    )
    body.most_arena_bytes = 140 * MB
    instance = body.instance
    for facts_of_model in models:
        body.send(Register(facts_of_model, path=""))
    n_outputs = {a.request.id: a.n_output for a in arrivals}
    drawn: dict[RequestId, int] = {}

    def arrive(request: Request) -> None:
        if is_admitted(instance, request):
            drawn[request.id] = 0
            body.submit_at(request)

    for arrival in arrivals:
        body.clock.call_at(arrival.request.arrival_s, partial(arrive, arrival.request))
    tickets: list[Ticket] = []
    for size_mb in sizes_mb:
        message = Resize(size_mb * MB)
        at_s = float(rng.uniform(0, 6))
        body.clock.call_at(at_s, lambda message=message: tickets.append(body.send(message)))
    body.clock.run(until_s=600)

    ends = [message for message in body.said if isinstance(message, Finished)]
    for message in body.said:
        if isinstance(message, Tokens):
            drawn[message.request] += len(message.token_ids)
    assert sorted(end.request for end in ends) == sorted(drawn)
    assert drawn == {request: n_outputs[request] for request in drawn}
    answers = [m for m in body.said if isinstance(m, Acknowledged) and m.ticket in tickets]
    assert len(answers) == len(sizes_mb)
    assert {answer.code for answer in answers} <= {None, ErrorCode.DOES_NOT_FIT, ErrorCode.IN_USE}
    body.pool.check_integrity()
    assert (
        instance.ledger.arena.capacity
        == instance.device.arena_bytes - instance.device.arena_bytes % EXTENT_ALIGNMENT
    )
    assert instance.device.arena_bytes in {arena_mb * MB, *(size * MB for size in sizes_mb)}
    assert (instance.ledger.blocks.used_bytes, instance.ledger.host_blocks.used_bytes) == (0, 0)


# The real device


def resize(body: Served, arena_bytes: int) -> Acknowledged:
    body.send(Resize(arena_bytes))
    answer = body.until(lambda message: isinstance(message, Acknowledged))
    assert isinstance(answer, Acknowledged)
    return answer


def arena_bytes_of(entries: list[Entry], n_slabs: int) -> int:
    return real_device(entries, n_slabs).arena_bytes


def serve_and_resize(entries: list[Entry], body: Served) -> list[Acknowledged]:
    """Sixty requests, and the arena shrunk, grown and shrunk again among their tokens."""
    for submit in submits(entries, 60):
        body.send(submit)
    answers = []
    for n_slabs in (3, 30, 4):
        for _ in range(40):
            body.until(lambda message: isinstance(message, Tokens))
        answers.append(resize(body, arena_bytes_of(entries, n_slabs)))
    body.until_ended(60)
    return answers


@pytest.fixture(scope="module")
def alone(entries: list[Entry]) -> dict[object, list[int]]:
    """What the requests yield when nothing is resized."""
    with served(entries, real_device(entries, n_slabs=200)) as body:
        for submit in submits(entries, 60):
            body.send(submit)
        body.until_ended(60)
        return dict(body.tokens)


@pytest.mark.parametrize("host_kv_bytes", [4096 * KB, SLAB_BYTES], ids=["paging", "host full"])
def test_tokens_are_those_of_an_undisturbed_run(
    entries: list[Entry], alone: dict[object, list[int]], host_kv_bytes: int
) -> None:
    with served(entries, real_device(entries, 20, host_kv_bytes)) as body:
        answers = serve_and_resize(entries, body)
        assert [answer.error for answer in answers] == [""] * 3
        assert body.instance.device.arena_bytes == arena_bytes_of(entries, 4)
    assert body.tokens == alone
    assert {end.reason for end in body.ends.values()} <= {FinishReason.STOP, FinishReason.LENGTH}
    body.check_books()


def test_the_same_on_the_cuda_device_over_fake_streams(
    entries: list[Entry], alone: dict[object, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(seed=7)
    monkeypatch.setattr(executor, "TorchGpu", lambda: gpu)
    # Fake streams launch no kernel that could be compiled; `test_warming.py` has the real one.
    monkeypatch.setattr(executor, "compile_in_a_child", lambda *_, **__: lambda _paths: None)
    with served(entries, real_device(entries, 20), kind="cuda") as body:
        before = sum(gpu.allocated.values())
        gpu.capacity = before + SLAB_BYTES
        assert resize(body, arena_bytes_of(entries, 40)).code is ErrorCode.DOES_NOT_FIT
        assert sum(gpu.allocated.values()) == before
        gpu.capacity = 1 << 30
        assert [answer.error for answer in serve_and_resize(entries, body)] == [""] * 3
        assert before - sum(gpu.allocated.values()) == 16 * SLAB_BYTES
    assert body.tokens == alone
    assert (gpu.allocated, gpu.locked) == ({}, {})


def mappings() -> list[tuple[int, int]]:
    """Size and resident part of each of this process's mappings, in bytes."""
    text = Path("/proc/self/smaps").read_text()
    found = re.findall(r"^Size:\s+(\d+) kB$.*?^Rss:\s+(\d+) kB$", text, re.MULTILINE | re.DOTALL)
    return [(int(size) << 10, int(resident) << 10) for size, resident in found]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's view of memory")
def test_memory_goes_back_to_the_system_and_comes_again(entries: list[Entry]) -> None:
    large, small = 512 << 20, 64 << 20
    facts = real_device(entries, n_slabs=(large - arena_bytes_of(entries, 0)) // SLAB_BYTES)
    sizes: list[tuple[int, int]] = []
    with served(entries, facts) as body:

        def measure() -> None:
            sizes.append(tuple(sum(column) for column in zip(*mappings(), strict=True)))  # type: ignore[arg-type]

        for submit in submits(entries, 12):
            body.send(submit)
        body.until(lambda message: isinstance(message, Tokens))
        measure()
        for arena_bytes in (small, large, small):
            assert not resize(body, arena_bytes).error
            body.until(lambda message: isinstance(message, Tokens | Finished))
            measure()
        body.until_ended(12)
        assert not resize(body, large).error
        body.send(submits(entries, 13)[12])
        body.until_ended(13)  # what the last step worked on must not be kept by who worked on it
        measure()
        assert not resize(body, small).error
        measure()
        refused = resize(body, 1 << 50)
        assert refused.code is ErrorCode.DOES_NOT_FIT
        assert "cannot be allocated on this machine" in refused.error
        assert body.instance.device.arena_bytes == small
    changes = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(sizes)]
    given_back = large - small
    for sign, change in zip((-1, 1, -1, 1, -1), changes, strict=True):
        for n_bytes in change:
            assert sign * n_bytes > 0.8 * given_back, (sizes, changes)
