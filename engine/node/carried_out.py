"""Effects of an instance, carried out on its device and told to the front.

effects ──▶ launches, stops, bindings ──▶ the device's executor
        └─▶ phases, ends of requests ──▶ the front
"""

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from tokenmux.core.clock import Clock
from tokenmux.core.effects import (
    CopyEnded,
    Effects,
    Interrupt,
    ModelLoaded,
    PrefixTaken,
    RequestEnded,
    RequestEntered,
    RequestLeft,
    ResizeReady,
    StepEnded,
    Supersede,
)
from tokenmux.core.errors import ErrorCode
from tokenmux.core.facts import ImageId, InstanceId
from tokenmux.core.phases import PhaseChanged
from tokenmux.core.plan import Discard, Drop, Evict
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedFetch,
    StartedPageIn,
    StartedPageOut,
    StartedStep,
)
from tokenmux.messages.completions import CopyCompleted
from tokenmux.messages.launches import OperationId, ReallocateArena, StopCopy, Unbind
from tokenmux.messages.reports import Report
from tokenmux.node.accusations import Accusations
from tokenmux.node.grammars import Grammars
from tokenmux.node.host_memory import HostMemory
from tokenmux.node.node_device import NodeDevice
from tokenmux.node.node_requests import NodeRequests
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.pool.pool import Pool


class CarriedOut:
    """Carries effects out; see the module."""

    def __init__(
        self,
        pool: Pool,
        devices: Mapping[InstanceId, NodeDevice],
        memory: HostMemory,
        cache: HostCache,
        requests: NodeRequests,
        accusations: Accusations,
        grammars: Grammars,
        clock: Clock,
        say: Callable[[Report], None],
    ) -> None:
        self.has_begun = False
        """True if an operation began since the books were last checked."""
        self._pool = pool
        self._devices = devices
        self._memory = memory
        self._cache = cache
        self._requests = requests
        self._accusations = accusations
        self._grammars = grammars
        self._clock = clock
        self._say = say

    def carry_out(self, device: NodeDevice, effects: Effects) -> None:
        """Carry out and report what an event or a decision of the device's instance caused, in order."""
        for effect in effects:
            match effect:
                case PhaseChanged():
                    self._say(self._accusations.shown(effect))
                case StartedFetch():
                    self._drop_images(effect.dropped)
                    self._start(device, effect)
                case StartedStep(operation=step):
                    self._requests.step_began(step)
                    self._start(device, effect)
                case StartedActivation() | StartedPageIn() | StartedPageOut() | StartedCompaction():
                    self._start(device, effect)
                case Interrupt():
                    device.stop_step()
                case Supersede(operation):
                    device.say(StopCopy(OperationId(operation)))
                case CopyEnded(started, done):
                    device.copy_ended(started, failed=not done.ok)
                    if isinstance(started, StartedActivation) and done.error:
                        lost = [image.id for image in started.images if not self._cache.has(image.id)]
                        self._drop_images(lost)
                case RequestEnded():
                    self._requests.ended(effect, _code_of_failed_load(effects))
                case Evict(model):
                    device.say(Unbind(model))
                case ResizeReady(arena_bytes):
                    device.say(ReallocateArena(arena_bytes))
                case ModelLoaded(started):
                    self._accusations.loaded(started.model.id)
                case RequestEntered(request):
                    self._grammars.entered(device, request.id)
                case StepEnded() | RequestLeft() | PrefixTaken() | Drop() | Discard():
                    pass
                case _:
                    assert_never(effect)

    def _drop_images(self, images: Iterable[ImageId]) -> None:
        """The host cache has forgotten these images."""
        for image in images:
            for mapper in self._memory.drop(image):
                self._devices[mapper].unmap(image)

    def _start(self, device: NodeDevice, started: Started) -> None:
        self.has_begun = True
        error = device.start(started)
        if error is not None:
            failed = CopyCompleted(OperationId(started.id), self._clock.now_s(), str(error), error.code)
            self._pool.post(device.index, device.copy_completed(failed))


def _code_of_failed_load(effects: Effects) -> ErrorCode | None:
    """The kind of error with which a load failed, if one did. The requests that waited for it end in the same
    effects."""
    for effect in effects:
        match effect:
            case CopyEnded(StartedActivation() | StartedFetch(), done) if done.error:
                return done.code
    return None
