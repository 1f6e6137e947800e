"""An executor, driven by hand over a socket: what it is told, and nothing else, happens."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.executor.executor_driver import (
    FACTS,
    HOST_KV_BYTES,
    KB,
    WAIT_S,
    Driver,
    Host,
    InChild,
    InProcess,
    broken,
)
from tokenmux.core.errors import ErrorCode
from tokenmux.core.event import SUPERSEDED
from tokenmux.core.facts import ImageId, ModelId
from tokenmux.core.sampling import Sampling
from tokenmux.messages.completions import (
    ArenaReallocated,
    CopyCompleted,
    ExecutorAlive,
    StepCompleted,
)
from tokenmux.messages.launches import (
    ArenaMove,
    Bind,
    CloseExecutor,
    MapImage,
    MoveLaunch,
    OperationId,
    ReallocateArena,
    StepLaunch,
    StepSegment,
    StopCopy,
    StopStep,
    Unbind,
    UnmapImage,
)
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.entry import Entry

FAMILIES = ("llama", "gpt2")
N_PROMPT = 70
BLOCKS = range(20, 30)
"""KV blocks behind the weights; the arena is far larger."""


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    root = tmp_path_factory.mktemp("catalogue")
    catalogue = Catalogue(root)
    return [
        catalogue.register_folder(family, tiny.create(family, root / "checkpoints" / family))
        for family in FAMILIES
    ]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def driver(host: Host) -> Iterator[Callable[..., Driver]]:
    """Makes drivers, and closes them."""
    made: list[Driver] = []

    def make(kind: type[InProcess] | type[InChild] = InProcess) -> Driver:
        made.append(Driver(host, kind))
        return made[-1]

    yield make
    for each in made:
        each.close()


def blocks_of(entry: Entry) -> list[int]:
    """Ten blocks from the middle of the arena, whatever their size."""
    first = FACTS.arena_bytes // 2 // entry.facts.kv.block_bytes
    return list(range(first, first + 10))


def prompt() -> list[int]:
    return [int(token) for token in np.random.default_rng(1).integers(0, 256, N_PROMPT)]


def loaded(driver: Driver, entry: Entry) -> Driver:
    driver.add(entry)
    assert not driver.fetch(entry).error
    assert not driver.place(entry).error
    return driver


def test_a_process_carries_out_everything_that_a_request_needs(
    driver: Callable[..., Driver], entries: list[Entry]
) -> None:
    alone = loaded(driver(), entries[0])
    blocks = blocks_of(entries[0])
    expected = alone.generate(entries[0], prompt(), N_PROMPT, blocks, 30, repeat=10, first=0)
    assert len(set(expected)) > 3

    child = driver(InChild)
    entry = entries[0]
    child.add(entry)
    assert not child.fetch(entry).error
    assert not child.place(entry, offset=1024 * KB).error
    drawn = child.generate(entry, prompt(), N_PROMPT, blocks, 10, first=0)
    assert not child.page(entry, blocks[:6], range(3, 9), into=False).error
    child.tell(MoveLaunch(OperationId(900), (ArenaMove(1024 * KB, 256, entry.facts.n_bytes),)))
    assert not child.until(CopyCompleted).error
    child.tell(Bind(entry.facts.id, 256))
    elsewhere = [index + 20 for index in blocks]
    assert not child.page(entry, elsewhere[:6], range(3, 9), into=True).error
    drawn += child.generate(entry, prompt() + drawn, N_PROMPT, elsewhere, 20, repeat=10)
    assert drawn == expected
