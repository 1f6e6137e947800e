"""A node and its executors on real (small) models: what a request yields must not depend on what else
happens to the devices.

A device holds one model and a little KV; six models of different architectures are served at once.
"""

import gc

import numpy as np
import psutil
import pytest

from tests.device.cuda.fake_gpu import FakeGpu
from tests.node.served_node import KB, SLAB_BYTES, device, served
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.request import FinishReason, Request, RequestId, ServiceLevel
from tokenmux.core.sampling import Sampling
from tokenmux.executor import executor
from tokenmux.messages.commands import (
    Cancel,
    DrainDevice,
    Pause,
    RemoveDevice,
    Resume,
    Submit,
)
from tokenmux.messages.reports import Acknowledged, Tokens
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gpt2", "phi3")


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    root = tmp_path_factory.mktemp("catalogue")
    catalogue = Catalogue(root)
    return [
        catalogue.register_folder(family, tiny.create(family, root / "checkpoints" / family))
        for family in FAMILIES
    ]


def submits(entries: list[Entry], n: int, seed: int = 0) -> list[Submit]:
    """Requests in turn over the models; every third is sampled, the others are greedy."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(n):
        entry = entries[number % len(entries)]
        prompt = tuple(int(t) for t in rng.integers(0, 256, size=rng.integers(1, 90)))
        sampling = (
            Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=number) if number % 3 == 0 else Sampling()
        )
        request = Request(
            RequestId(f"r{number}"),
            ModelId(entry.name),
            n_prompt=len(prompt),
            max_tokens=int(rng.integers(4, 40)),
            arrival_s=0.0,
            service=ServiceLevel(ttft_s=1.0, tpot_s=0.01),
        )
        made.append(Submit(request, prompt, sampling, stop_token_ids=frozenset({257})))
    return made


@pytest.fixture(scope="module")
def alone(entries: list[Entry]) -> dict[RequestId, list[int]]:
    """What each of 60 requests yields with the device to itself."""
    roomy = device(entries, n_slabs=200)
    with served(entries, roomy) as body:
        for number, submit in enumerate(submits(entries, 60)):
            body.send(submit)
            body.until_ended(number + 1)
        return body.tokens


@pytest.mark.parametrize("host_kv_bytes", [4096 * KB, 2 * SLAB_BYTES], ids=["paging", "host full"])
def test_sixty_requests_over_six_models_on_a_device_that_holds_one(
    entries: list[Entry], alone: dict[RequestId, list[int]], host_kv_bytes: int
) -> None:
    with served(entries, device(entries, 4, host_kv_bytes)) as body:
        for submit in submits(entries, 60):
            body.send(submit)
        body.until_ended(60)
        swaps = sum(body.instance.metrics.of(ModelId(entry.name)).n_swaps for entry in entries)
    assert {end.reason for end in body.ends.values()} <= {FinishReason.STOP, FinishReason.LENGTH}
    assert swaps > len(entries)
    assert body.tokens == alone
    body.check_books()


@pytest.mark.parametrize("lockable", [True, False], ids=["page-locked", "staged"])
def test_the_same_on_the_cuda_device_over_fake_streams(
    entries: list[Entry], alone: dict[RequestId, list[int]], lockable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(seed=5, lockable=lockable)
    monkeypatch.setattr(executor, "TorchGpu", lambda: gpu)
    # Fake streams launch no kernel that could be compiled; `test_warming.py` has the real one.
    monkeypatch.setattr(executor, "compile_in_a_child", lambda *_, **__: lambda _paths: None)
    with served(entries, device(entries, 4), kind="cuda") as body:
        for submit in submits(entries, 60):
            body.send(submit)
        body.until_ended(60)
        assert sum(body.instance.metrics.of(ModelId(entry.name)).n_swaps for entry in entries) > len(entries)
    assert body.tokens == alone
    assert gpu.n_launches, "blocks this small are paged by the kernel"
    body.check_books()
    assert (gpu.allocated, gpu.locked) == ({}, {})


def test_with_int8_requests_that_were_paged_go_on_with_nearly_their_tokens(
    entries: list[Entry], alone: dict[RequestId, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FakeGpu(seed=5)
    monkeypatch.setattr(executor, "TorchGpu", lambda: gpu)
    # Fake streams launch no kernel that could be compiled; `test_warming.py` has the real one.
    monkeypatch.setattr(executor, "compile_in_a_child", lambda *_, **__: lambda _paths: None)
    with served(entries, device(entries, 4), kind="cuda", paged_kv="int8") as body:
        for submit in submits(entries, 60):
            body.send(submit)
        body.until_ended(60)
    assert gpu.n_launches
    same = sum(body.tokens[request] == tokens for request, tokens in alone.items())
    assert same > len(alone) / 2, "a bound of half a step in 127 changes few"
    assert {end.reason for end in body.ends.values()} <= {FinishReason.STOP, FinishReason.LENGTH}
    body.check_books()


def test_requests_that_are_cancelled_paused_and_resumed_disturb_nobody(
    entries: list[Entry], alone: dict[RequestId, list[int]]
) -> None:
    with served(entries, device(entries, 4)) as body:
        for submit in submits(entries, 60):
            body.send(submit)
        cancelled = [RequestId(f"r{number}") for number in range(0, 60, 7)]
        paused = [RequestId(f"r{number}") for number in range(1, 60, 7)]
        for request in paused:
            body.send(Pause(request))
        body.until(lambda message: isinstance(message, Tokens))
        for request in cancelled:
            body.send(Cancel(request))
        body.until_ended(30)
        for request in paused:
            body.send(Resume(request))
        body.until_ended(60)
    for request, tokens in body.tokens.items():
        expected = alone[request]
        assert tokens == (expected[: len(tokens)] if request in cancelled else expected)
    body.check_books()


def test_a_request_goes_on_from_what_was_delivered_as_if_nothing_had_happened(
    entries: list[Entry], alone: dict[RequestId, list[int]]
) -> None:
    """Recovery after a node's death: the tokens already delivered come back with the request."""
    with served(entries, device(entries, 8)) as body:
        expected = {}
        for submit in submits(entries, 60):
            known = alone[submit.request.id]
            cut = len(known) // 2
            if cut == 0:
                continue
            delivered = tuple(known[:cut])
            body.tokens[submit.request.id] = list(delivered)
            expected[submit.request.id] = known
            body.send(
                Submit(
                    submit.request,
                    submit.prompt,
                    submit.sampling,
                    stop_token_ids=submit.stop_token_ids,
                    delivered=delivered,
                )
            )
        body.until_ended(len(expected))
    assert body.tokens == expected


def test_the_memory_of_the_process_stays_flat(entries: list[Entry]) -> None:
    process = psutil.Process()
    with served(entries, device(entries, 4)) as body:
        sizes = []
        for _ in range(10):
            body.tokens.clear()
            body.ends.clear()
            # The same requests each time: torch keeps a compiled product for every shape that it has seen.
            for submit in submits(entries, 24):
                body.send(submit)
            body.until_ended(24)
            gc.collect()
            sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[2] < 4 << 20, [size >> 20 for size in sizes]


@pytest.mark.parametrize("n_devices", [2, 3])
def test_devices_that_share_weights_and_paged_kv_draw_the_same_tokens(
    entries: list[Entry], alone: dict[RequestId, list[int]], n_devices: int
) -> None:
    with served(entries, *[device(entries, 4, 512 * KB)] * n_devices) as body:
        for submit in submits(entries, 60):
            body.send(submit)
        body.until_ended(60)
        assert all(instance.metrics.n_steps for instance in body.driven.node.pool.instances)
        body.check_books()
    assert body.tokens == alone


@pytest.mark.parametrize("index", [0, 1])
def test_requests_of_a_device_that_is_killed_go_on_with_their_tokens(
    entries: list[Entry], alone: dict[RequestId, list[int]], index: int
) -> None:
    """In mid-step, twice: once the others take over, once its successor does."""
    with served(entries, *[device(entries, 4, 512 * KB)] * 2) as body:
        for submit in submits(entries, 60):
            body.send(submit)
        for n_ended in (5, 15):
            body.until_ended(n_ended)
            body.until(lambda message: isinstance(message, Tokens))
            body.driven.kill(InstanceId(index))
        body.until_ended(60)
        assert body.driven.node.devices[InstanceId(index)].n_deaths == 2
        body.check_books()
    assert body.tokens == alone


def test_a_device_that_is_drained_hands_over_what_it_has_begun(
    entries: list[Entry], alone: dict[RequestId, list[int]]
) -> None:
    with served(entries, *[device(entries, 8, 512 * KB)] * 2) as body:
        for submit in submits(entries, 60):
            body.send(submit)
        body.until_ended(5)
        body.send(DrainDevice(InstanceId(0)))
        answer = body.until(lambda message: isinstance(message, Acknowledged))
        assert isinstance(answer, Acknowledged)
        assert not answer.error
        assert len(body.ends) < 60
        body.send(RemoveDevice(InstanceId(0)))
        body.until_ended(60)
        assert body.driven.node.devices.keys() == {1}
        body.check_books()
    assert body.tokens == alone
