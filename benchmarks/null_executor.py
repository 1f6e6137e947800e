"""An executor that computes nothing: it carries launches out by letting their time pass, and draws token 0.

    python -m benchmarks.null_executor SOCKET PARENT

Speaks a real executor's messages. How long a step takes, the roofline of its device's facts says, and every
step's begin and end are appended to a file in the folder that the environment names.
"""

import heapq
import itertools
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenmux.core.cost import StepWork
from tokenmux.core.facts import HostFacts, ModelFacts, ModelId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.messages.codec import COMPLETIONS, EXECUTOR_SETUP, INSTRUCTIONS
from tokenmux.messages.completions import (
    ArenaReallocated,
    CopyCompleted,
    Drew,
    ExecutorAlive,
    ExecutorReady,
    ExecutorReport,
    StepCompleted,
)
from tokenmux.messages.frame_socket import FrameSocket
from tokenmux.messages.launches import (
    AddModel,
    FetchLaunch,
    Instruction,
    MoveLaunch,
    PagingLaunch,
    ReallocateArena,
    StepLaunch,
    StopStep,
    WeightsLaunch,
)
from tokenmux.messages.setups import ExecutorSetup
from tokenmux.processes import orphans

FOLDER = "TOKENMUX_BENCHMARK_STEPS"
"""Names the folder for the times of steps."""

ALIVE_EVERY_S = 1.0
COPY_S = 0.001
_STEP = struct.Struct("<dd")


def steps_of(folder: Path, instance: int) -> Iterator[tuple[float, float]]:
    """When an instance's steps were received and when their ends were reported, in order."""
    return _STEP.iter_unpack(_whole((folder / f"{instance}.steps").read_bytes()))


def _whole(written: bytes) -> bytes:
    return written[: len(written) - len(written) % _STEP.size]


class NullExecutor:
    """One device. A single thread: it waits for instructions until the next thing ends."""

    def __init__(self, frames: FrameSocket, setup: ExecutorSetup) -> None:
        self._frames = frames
        self._cost = RooflineCost(setup.device.facts, HostFacts(1, 1.0))
        self._models: dict[ModelId, ModelFacts] = {}
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._step: StepLaunch | None = None
        self._received_s = 0.0
        self._ends_s: list[float] = []
        self._is_stopped = False
        file = Path(os.environ[FOLDER]) / f"{setup.instance}.steps"
        self._log = file.open("ab", buffering=0)

    def run(self) -> None:
        """Serve until the node is gone."""
        self._beat()
        while True:
            now_s = time.monotonic()
            while self._ends and self._ends[0][0] <= now_s:
                heapq.heappop(self._ends)[2]()
                now_s = time.monotonic()
            readable, _, _ = select.select([self._frames], [], [], max(0.0, self._ends[0][0] - now_s))
            if readable:
                for instruction in INSTRUCTIONS.decode(self._frames.receive()):
                    self._carry_out(instruction)
                close_all(self._frames)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case StepLaunch():
                self._step, self._received_s = instruction, time.monotonic()
                self._ends_s, self._is_stopped = [], False
                self._iterate()
            case StopStep():
                self._is_stopped = True
            case WeightsLaunch(operation) | PagingLaunch(operation) | MoveLaunch(operation):
                self._at(COPY_S, lambda: self._say(CopyCompleted(operation, time.monotonic())))
            case FetchLaunch(operation):
                self._at(COPY_S, lambda: self._say(CopyCompleted(operation, time.monotonic())))
            case AddModel(facts):
                self._models[facts.id] = facts
            case ReallocateArena(arena_bytes):
                self._say(ArenaReallocated(arena_bytes))
            case _:
                pass

    def _iterate(self) -> None:
        assert self._step is not None
        work = work_of(self._step, len(self._ends_s))
        self._at(self._cost.step_s(self._models[self._step.model], work), self._iteration_ended)

    def _iteration_ended(self) -> None:
        step = self._step
        assert step is not None
        now_s = time.monotonic()
        self._ends_s.append(now_s)
        tokens = (0,) * sum(segment.draws for segment in step.segments)
        if len(self._ends_s) < step.repeat and not self._is_stopped:
            self._say(Drew(step.operation, now_s, tokens))
            self._iterate()
        else:
            self._step = None
            self._log.write(_STEP.pack(self._received_s, time.monotonic()))
            self._say(StepCompleted(step.operation, tuple(self._ends_s), tokens))

    def _at(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._ends, (time.monotonic() + seconds, next(self._order), call))

    def _beat(self) -> None:
        self._say(ExecutorAlive())
        self._at(ALIVE_EVERY_S, self._beat)

    def _say(self, report: ExecutorReport) -> None:
        self._frames.send(COMPLETIONS.encode((report,)))


def work_of(step: StepLaunch, iteration: int) -> StepWork:
    """The work of one iteration: segments that draw after a single token are rows of a decode step."""
    prefill, pairs, rows, context = 0, 0, 0, 0
    for segment in step.segments:
        n = len(segment.token_ids)
        if n == 1 and segment.draws:
            rows += 1
            context += segment.start + 1 + iteration
        else:
            prefill += n
            pairs += n * segment.start + n * (n + 1) // 2
    return StepWork(prefill, pairs, rows, context)


def close_all(frames: FrameSocket) -> None:
    """Close the descriptors that came with frames: nothing is mapped here."""
    while frames.descriptors:
        os.close(frames.descriptors.popleft())


def main() -> None:
    descriptor, parent = (int(argument) for argument in sys.argv[1:3])
    orphans.die_with_parent(parent)
    with socket.socket(fileno=descriptor) as end:
        frames = FrameSocket(end)
        try:
            setup = EXECUTOR_SETUP.decode(frames.receive())
            close_all(frames)
            executor = NullExecutor(frames, setup)
            frames.send(COMPLETIONS.encode((ExecutorReady(),)))
            executor.run()
        except (EOFError, OSError):
            os._exit(0)  # the node is gone


if __name__ == "__main__":
    main()
