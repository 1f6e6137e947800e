"""Images and paged-out KV in memory that executors map: who has what, and what is given back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.errors import DoesNotFit
from tokenmux.core.facts import Image, ImageId, InstanceId
from tokenmux.node.host_memory import HostMemory
from tokenmux.processes import available_memory, shared_memory

FIRST, SECOND = InstanceId(0), InstanceId(1)
A, B = (Image(ImageId(name), 10_000) for name in "ab")


def n_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def memory() -> Iterator[HostMemory]:
    before = n_open()
    made = HostMemory(20_000)
    yield made
    made.close()
    assert n_open() == before


def test_memory_for_kv_is_there_from_the_start_and_that_of_images_once_it_is_written(
    memory: HostMemory,
) -> None:
    assert os.fstat(memory.host_kv).st_size == 20_000
    assert os.fstat(memory.host_kv).st_blocks * 512 >= 20_000
    image = memory.begin_fetch(A, FIRST)
    assert os.fstat(image.descriptor).st_size == 10_000
    assert os.fstat(image.descriptor).st_blocks == 0


def test_what_a_lost_device_was_filling_is_lost_and_what_it_had_mapped_stays(memory: HostMemory) -> None:
    memory.begin_fetch(A, FIRST)
    memory.end_fetch(A.id)
    memory.images[A.id].mapped_by.add(SECOND)
    memory.begin_fetch(B, FIRST)
    memory.forget_device(FIRST)
    assert memory.images.keys() == {A.id}
    assert memory.images[A.id].mapped_by == {SECOND}


def test_who_has_mapped_an_image_has_to_unmap_it_when_it_is_dropped(memory: HostMemory) -> None:
    memory.begin_fetch(A, FIRST)
    memory.end_fetch(A.id)
    memory.images[A.id].mapped_by.add(SECOND)
    assert memory.drop(A.id) == {FIRST, SECOND}
    assert memory.drop(A.id) == set(), "nobody has it any more"


def test_a_machine_without_the_memory_is_refused_and_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available_memory, "available_bytes", lambda: 10_000)
    before = n_open()
    with pytest.raises(DoesNotFit):
        HostMemory(20_000)
    assert n_open() == before


def test_without_descriptors_no_fetch_begins(memory: HostMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise DoesNotFit("no more descriptors")

    monkeypatch.setattr(shared_memory, "create_shared", refuse)
    with pytest.raises(DoesNotFit):
        memory.begin_fetch(A, FIRST)
    assert not memory.images


DEEDS = st.lists(
    st.tuples(
        st.sampled_from(["fetch", "end", "map", "drop", "lose"]),
        st.sampled_from([A, B]),
        st.sampled_from([FIRST, SECOND]),
    ),
    max_size=30,
)


@given(DEEDS)
def test_there_is_one_descriptor_for_each_image_and_none_for_others(
    deeds: list[tuple[str, Image, InstanceId]],
) -> None:
    before = n_open()
    memory = HostMemory(100)
    for deed, image, device in deeds:
        known = memory.images.get(image.id)
        match deed:
            case "fetch" if known is None:
                memory.begin_fetch(image, device)
            case "end" if known is not None:
                memory.end_fetch(image.id)
            case "map" if known is not None and known.fetcher is None:
                known.mapped_by.add(device)
            case "drop":
                memory.drop(image.id)
            case "lose":
                memory.forget_device(device)
            case _:
                pass
        assert n_open() == before + 1 + len(memory.images)
        if deed == "lose":
            assert all(device not in left.mapped_by for left in memory.images.values())
            assert all(left.fetcher != device for left in memory.images.values())
    memory.close()
    assert n_open() == before
