"""One device and the models on it: carries out what a node instructs, and answers with completions.

    instructions ──▶ carry_out ──┬──▶ device     launches, stops, images
                                 └──▶ models     added, bound to weights in the arena, unbound, removed
    channels' threads ──▶ send                   completions, at once and in the order in which they happen

It has no ledger, no policy, no instance and no requests.
"""

import logging
import os
import traceback
from collections import deque
from collections.abc import Callable
from threading import Lock

from tokenmux.core.errors import DoesNotFit
from tokenmux.device.cpu import CpuDevice
from tokenmux.device.cuda.device import CudaDevice
from tokenmux.device.cuda.gpu import TorchGpu
from tokenmux.device.device_protocol import Device, LaunchReport
from tokenmux.device.memory import SharedMemory
from tokenmux.executor.model_host import ModelHost
from tokenmux.executor.warming import Warmer, compile_in_a_child
from tokenmux.messages.codec import MalformedMessage
from tokenmux.messages.completions import (
    ArenaReallocated,
    Completions,
    ExecutorAlive,
    ExecutorBroken,
    ExecutorReady,
    ExecutorReport,
)
from tokenmux.messages.launches import (
    AddGrammar,
    AddModel,
    Bind,
    CloseExecutor,
    FetchLaunch,
    Instruction,
    Instructions,
    MapImage,
    MoveLaunch,
    PagingLaunch,
    ReallocateArena,
    RemoveGrammar,
    RemoveModel,
    StepLaunch,
    StopCopy,
    StopStep,
    Unbind,
    UnmapImage,
    WeightsLaunch,
)
from tokenmux.messages.setups import ExecutorSetup
from tokenmux.processes.allocation_time import allocation_s
from tokenmux.processes.monotonic_clock import MonotonicClock

_log = logging.getLogger(__name__)


class Executor:
    """One device. One thread calls `carry_out`; `send` is called from any thread, one call at a time."""

    def __init__(
        self, setup: ExecutorSetup, host_kv_descriptor: int, send: Callable[[Completions], None]
    ) -> None:
        """Takes over the descriptor. Raises ConfigError if there is no device of that kind, DoesNotFit if
        its memory is too small."""
        self.is_closed = False
        """True once the node asked for the end, or the device broke."""
        self._send = send
        self._sending = Lock()
        try:
            host_kv = SharedMemory(host_kv_descriptor, setup.host_kv_bytes)
        finally:
            os.close(host_kv_descriptor)
        facts, clock = setup.device.facts, MonotonicClock()
        self._arena_bytes = facts.arena_bytes
        self.device: Device
        if setup.device.kind == "cuda":
            gpu, paged_int8 = TorchGpu(), setup.device.paged_kv == "int8"
            warmer = Warmer(compile_in_a_child(gpu.capability, paged_int8=paged_int8))
            self.models = ModelHost(facts.cell_tokens, clock, warmer, self._say)
            self.device = CudaDevice(facts, host_kv, clock, self, self.models, gpu, paged_int8=paged_int8)
        else:
            self.models = ModelHost(facts.cell_tokens, clock, grammar_ready=self._say)
            self.device = CpuDevice(facts, host_kv, clock, self, self.models)
        self._say(ExecutorReady())

    def carry_out(self, instructions: Instructions, descriptors: deque[int]) -> None:
        """Begin what the node instructs; `descriptors` are those that came with it, in order. An error here
        breaks the executor."""
        for instruction in instructions:
            if self.is_closed:
                return
            try:
                self._carry_out(instruction, descriptors)
            except Exception as error:  # noqa: BLE001 - whatever it is, the node must hear of it
                self._break(f"{type(instruction).__name__} cannot be carried out", error)

    def beat(self) -> None:
        """Say that the thread which calls this is alive; to be called once a second."""
        self._say(ExecutorAlive())

    def close(self) -> None:
        """Stop everything and free the memory. Nothing is sent afterwards."""
        self.is_closed = True
        with self._sending:
            self._send = lambda _: None
        self.device.close()
        self.models.close()

    # the device's `Post`
    def tell(self, report: LaunchReport) -> None:
        self._say(report)

    def broken(self, operation: int, error: BaseException) -> None:
        self._break(f"operation {operation} failed on the device", error)

    def _say(self, completion: ExecutorReport) -> None:
        with self._sending:
            self._send((completion,))

    def _break(self, what: str, error: BaseException) -> None:
        _log.error("%s:\n%s", what, "".join(traceback.format_exception(error)))
        self.is_closed = True
        self._say(ExecutorBroken(f"{what}: {error!r}"))

    def _carry_out(self, instruction: Instruction, descriptors: deque[int]) -> None:
        match instruction:
            case StepLaunch() | WeightsLaunch() | PagingLaunch() | MoveLaunch() | FetchLaunch():
                self.device.start(instruction)
            case Bind(model, offset):
                self.models.bind(model, offset)
            case Unbind(model):
                self.models.unbind(model)
            case StopStep(operation):
                self.device.stop_step(operation)
            case StopCopy(operation):
                self.device.stop_copy(operation)
            case MapImage(image, n_bytes, filled):
                if not descriptors:
                    raise MalformedMessage(f"image {image} came without a descriptor")
                self.device.map_image(image, n_bytes, descriptors.popleft(), filled=filled)
            case UnmapImage(image):
                self.device.unmap_image(image)
            case AddModel(facts, path):
                self.models.add(facts, path)
            case RemoveModel(model):
                self.models.remove(model)
            case AddGrammar(model, grammar):
                self.models.add_grammar(model, grammar)
            case RemoveGrammar(model, grammar_id):
                self.models.remove_grammar(model, grammar_id)
            case ReallocateArena(arena_bytes):
                self._reallocate(arena_bytes)
            case CloseExecutor():
                self.is_closed = True

    def _reallocate(self, arena_bytes: int) -> None:
        """On this thread, which says before for how long it may be silent: nothing else could begin."""
        self._say(ExecutorAlive(silent_s=allocation_s(arena_bytes + self._arena_bytes)))
        try:
            self.device.resize(arena_bytes)
        except DoesNotFit as error:
            self._say(ArenaReallocated(self._arena_bytes, str(error), error.code))
        else:
            self._arena_bytes = arena_bytes
            self._say(ArenaReallocated(arena_bytes))
