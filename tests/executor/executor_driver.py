"""Drives an executor by hand, in a process of its own or in the test's: a node without policy or books."""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue
from typing import Protocol, TypeVar

import numpy as np

from tokenmux.core.facts import FIRST_INSTANCE, DeviceFacts, ImageId
from tokenmux.core.sampling import Sampling
from tokenmux.executor import executor_main
from tokenmux.executor.executor import Executor
from tokenmux.messages.codec import COMPLETIONS, EXECUTOR_SETUP, INSTRUCTIONS
from tokenmux.messages.completions import (
    Completions,
    CopyCompleted,
    CopyProgressed,
    Drew,
    ExecutorAlive,
    ExecutorBroken,
    ExecutorReady,
    ExecutorReport,
    StepCompleted,
)
from tokenmux.messages.frame_socket import FrameSocket, framed
from tokenmux.messages.launches import (
    AddModel,
    Bind,
    FetchLaunch,
    Instruction,
    Launch,
    MapImage,
    OperationId,
    PagedBlocks,
    PagingLaunch,
    PlacedImage,
    StepLaunch,
    StepSegment,
    WeightsLaunch,
)
from tokenmux.messages.setups import DeviceSetup, ExecutorSetup
from tokenmux.models.catalogue.entry import Entry
from tokenmux.processes import orphans, shared_memory
from tokenmux.processes.executor_environment import executor_environment

KB = 1 << 10
WAIT_S = 60.0

FACTS = DeviceFacts(
    name="small",
    arena_bytes=8192 * KB,
    host_kv_bytes=0,
    copy_in_bytes_per_s=1e10,
    copy_out_bytes_per_s=1e10,
    memory_bytes_per_s=1e10,
    flops_per_s=1e11,
    slab_bytes=64 * KB,
    prefill_chunk_tokens=32,
)
HOST_KV_BYTES = 2048 * KB

Some = TypeVar("Some", bound=ExecutorReport)


class Link(Protocol):
    """The way to one executor. `send` takes over no descriptor."""

    def send(self, instructions: tuple[Instruction, ...], descriptors: Sequence[int]) -> None: ...
    def receive(self) -> Completions: ...
    def close(self) -> None: ...


class InProcess:
    """An executor in this process."""

    def __init__(self, setup: ExecutorSetup, host_kv: int) -> None:
        self.inbox: SimpleQueue[Completions] = SimpleQueue()
        self.executor = Executor(setup, os.dup(host_kv), self.inbox.put)

    def send(self, instructions: tuple[Instruction, ...], descriptors: Sequence[int]) -> None:
        self.executor.carry_out(instructions, deque(os.dup(d) for d in descriptors))

    def receive(self) -> Completions:
        return self.inbox.get(timeout=WAIT_S)

    def close(self) -> None:
        self.executor.close()


class InChild:
    """An executor in a process of its own."""

    def __init__(self, setup: ExecutorSetup | None, host_kv: int) -> None:
        """Without a `setup` it is waiting for one."""
        self.end, theirs = socket.socketpair()
        self.end.settimeout(WAIT_S)
        with theirs:
            command = [sys.executable, "-P", "-m", executor_main.__name__, str(theirs.fileno())]
            self.process = orphans.started(
                lambda: subprocess.Popen(
                    [*command, str(os.getpid())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    env=executor_environment({**os.environ, "OMP_NUM_THREADS": "1"}),
                )
            ).result()
        self.frames = FrameSocket(self.end)
        if setup is not None:
            self.send_frame(EXECUTOR_SETUP.encode(setup), [host_kv])

    def send(self, instructions: tuple[Instruction, ...], descriptors: Sequence[int]) -> None:
        self.send_frame(INSTRUCTIONS.encode(instructions), descriptors)

    def send_frame(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        wire = framed(frame)
        if descriptors:
            n = socket.send_fds(self.end, [wire], list(descriptors))
            wire = wire[n:]
        self.end.sendall(wire)

    def receive(self) -> Completions:
        return COMPLETIONS.decode(self.frames.receive())

    def close(self) -> None:
        self.frames.close()
        self.process.kill()
        self.process.wait(WAIT_S)


@dataclass
class Host:
    """What executors of one machine share: images and the memory for paged-out KV."""

    host_kv: int = field(default_factory=lambda: shared_memory.create_shared("kv", HOST_KV_BYTES))
    images: dict[ImageId, int] = field(default_factory=dict)

    def image(self, entry: Entry) -> int:
        image = entry.facts.images[0]
        if image.id not in self.images:
            self.images[image.id] = shared_memory.create_shared("image", image.n_bytes)
        return self.images[image.id]

    def content(self, entry: Entry) -> bytes:
        return os.pread(self.image(entry), entry.facts.n_bytes, 0)

    def forget(self, entry: Entry) -> None:
        os.close(self.images.pop(entry.facts.images[0].id))

    def close(self) -> None:
        for descriptor in (self.host_kv, *self.images.values()):
            os.close(descriptor)


class Driver:
    """One executor, told what to do one thing after another."""

    def __init__(
        self, host: Host, kind: type[InProcess] | type[InChild] = InProcess, facts: DeviceFacts = FACTS
    ) -> None:
        self.host = host
        setup = ExecutorSetup(FIRST_INSTANCE, DeviceSetup(facts), HOST_KV_BYTES)
        self.link: InProcess | InChild = kind(setup, host.host_kv)
        self.numbers = count(1)
        self.received: deque[ExecutorReport] = deque()
        self.is_closed = False
        self.drawn: list[int] = []
        """Tokens of the steps that were waited for."""
        self.until(ExecutorReady)

    def tell(self, *instructions: Instruction, descriptors: Sequence[int] = ()) -> None:
        self.link.send(instructions, descriptors)

    def next(self) -> ExecutorReport:
        while not self.received:
            self.received.extend(self.link.receive())
        return self.received.popleft()

    def until(self, kind: type[Some]) -> Some:
        """Receive until a completion of this kind. Any failure before is an error."""
        while not isinstance(completion := self.next(), kind):
            assert isinstance(completion, ExecutorAlive | CopyProgressed | Drew), completion
            if isinstance(completion, Drew):
                self.drawn += completion.token_ids
        return completion

    def number(self) -> OperationId:
        return OperationId(next(self.numbers))

    # what a node would do

    def add(self, entry: Entry) -> None:
        self.tell(AddModel(entry.facts, str(entry.path)))

    def map(self, entry: Entry, *, filled: bool) -> None:
        image = entry.facts.images[0]
        self.tell(MapImage(image.id, image.n_bytes, filled), descriptors=[self.host.image(entry)])

    def fetch(self, entry: Entry) -> CopyCompleted:
        self.map(entry, filled=False)
        return self.copied(FetchLaunch(self.number(), entry.facts.id, entry.facts.images))

    def place(self, entry: Entry, offset: int = 0) -> CopyCompleted:
        image = entry.facts.images[0]
        launch = WeightsLaunch(self.number(), (PlacedImage(image.id, offset, image.n_bytes),))
        self.tell(launch, Bind(entry.facts.id, offset))
        return self.end_of(launch)

    def page(self, entry: Entry, device: Sequence[int], host: Sequence[int], *, into: bool) -> CopyCompleted:
        blocks = PagedBlocks(entry.facts.id, tuple(device), tuple(host))
        return self.copied(PagingLaunch(self.number(), into, (blocks,)))

    def copied(self, launch: Launch) -> CopyCompleted:
        self.tell(launch)
        return self.end_of(launch)

    def end_of(self, launch: Launch) -> CopyCompleted:
        completed = self.until(CopyCompleted)
        assert completed.operation == launch.operation
        return completed

    def generate(
        self,
        entry: Entry,
        tokens: list[int],
        n_prompt: int,
        blocks: Sequence[int],
        n: int,
        *,
        repeat: int = 1,
        sampling: Sampling = Sampling(),  # noqa: B008 - a frozen value
        first: int | None = None,
    ) -> list[int]:
        """Draw `n` tokens after `tokens`, all but the last of which has KV unless `first` says how many
        have."""
        made: list[int] = []
        start = len(tokens) - 1 if first is None else first
        while len(made) < n:
            known = [*tokens, *made]
            end = min(len(known), (start // 32 + 1) * 32) if start < n_prompt else len(known)
            draws = end == len(known)
            times = min(repeat, n - len(made)) if end - start == 1 and draws else 1
            segment = StepSegment(tuple(known[start:end]), start, n_prompt, tuple(blocks), draws, sampling)
            self.drawn = []
            self.tell(StepLaunch(self.number(), entry.facts.id, (segment,), times))
            completed = self.until(StepCompleted)
            made += [*self.drawn, *completed.token_ids]
            start = end if not draws else len(tokens) + len(made) - 1
        return made

    def close(self) -> None:
        """Closing twice has no effect."""
        if not self.is_closed:
            self.is_closed = True
            self.link.close()


def broken(link: Link) -> ExecutorBroken:
    """What an executor says at its end."""
    while True:
        for completion in link.receive():
            if isinstance(completion, ExecutorBroken):
                return completion


N_PROMPT = 70


def prompt() -> list[int]:
    """Token ids of a prompt of more than two chunks."""
    return [int(token) for token in np.random.default_rng(1).integers(0, 256, N_PROMPT)]


def blocks_of(entry: Entry) -> list[int]:
    """Ten KV blocks in the middle of the arena, whatever their size; weights lie before them."""
    first = FACTS.arena_bytes // 2 // entry.facts.kv.block_bytes
    return list(range(first, first + 10))


def loaded(driver: Driver, entry: Entry) -> Driver:
    """The same, with the model at the beginning of the arena."""
    driver.add(entry)
    assert not driver.fetch(entry).error
    assert not driver.place(entry).error
    return driver
