"""One device of a node, as the node sees it: its executor, what that was told, and what is in flight there.

started, bound, ... ──▶ instructions ── flush ──▶ executor
completions of the executor ──▶ events of the instance, and drawn tokens
"""

from collections.abc import Container, Mapping
from dataclasses import replace

from tokenmux.core.clock import Clock
from tokenmux.core.errors import DoesNotFit
from tokenmux.core.event import CopyDone, StepDone
from tokenmux.core.facts import ImageId, InstanceId, ModelId
from tokenmux.core.phases import DeviceState
from tokenmux.core.pooling import PooledRows
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.sampling import LogProbabilities
from tokenmux.core.started import (
    Started,
    StartedActivation,
    StartedCompaction,
    StartedCopy,
    StartedFetch,
    StartedLoad,
    StartedStep,
)
from tokenmux.messages.completions import CopyCompleted, CopyProgressed, Drew, StepCompleted
from tokenmux.messages.launches import Instruction, MapImage, OperationId, StopStep, Unbind, UnmapImage
from tokenmux.messages.setups import DeviceSetup
from tokenmux.node.executor_port import ExecutorPort
from tokenmux.node.host_memory import HostImage, HostMemory
from tokenmux.node.launching import binding_of, launch_of
from tokenmux.node.request_content import Content
from tokenmux.node.stalls import Stalls
from tokenmux.scheduler.instance.instance import Instance

Drawn = list[tuple[RequestId, int, LogProbabilities | None]]
"""Requests, each with the token that it drew, and what it asked to be told of it."""


ToldOfPrompts = list[tuple[RequestId, int, tuple[LogProbabilities, ...]]]
"""Requests, each with the position at which a step began its part, and what the step told of its prompt."""


PooledOfPrompts = list[tuple[RequestId, PooledRows]]
"""Requests, each with a sum of hidden states of its prompt."""


class StrayReport(Exception):
    """An executor reports what cannot have happened."""


class StepInFlight:
    """A step, who draws in it, and when its iterations ended so far."""

    def __init__(self, started: StartedStep, drawing: tuple[RequestId, ...]) -> None:
        self.started = started
        self.drawing = drawing
        self.ends_s: list[float] = []

    def drawn(self, report: Drew | StepCompleted) -> Drawn:
        """The requests with what the report says that they drew. Raises StrayReport if it does not fit."""
        n, told = len(self.drawing), report.log_probabilities or (None,) * len(self.drawing)
        if len(report.token_ids) != n or len(told) != n:
            raise StrayReport(f"{len(report.token_ids)} tokens for {n} requests of step {self.started.id}")
        return list(zip(self.drawing, report.token_ids, told, strict=True))

    def told(self, report: StepCompleted) -> ToldOfPrompts:
        """What the report tells of prompts. Raises StrayReport if it does not fit."""
        chunks = self.started.operation.chunks
        if not all(
            0 <= place < len(chunks) and len(told) <= chunks[place].n_tokens for place, told in report.told
        ):
            raise StrayReport(f"step {self.started.id} tells of prompts that were not in it")
        return [(chunks[place].request, chunks[place].start, told) for place, told in report.told]

    def pooled(self, report: StepCompleted) -> PooledOfPrompts:
        """The sums of hidden states in the report. Raises StrayReport if they do not fit."""
        chunks = self.started.operation.chunks
        for place, rows in report.pooled:
            if not 0 <= place < len(chunks) or not (
                chunks[place].start
                <= rows.first
                < rows.first + rows.n
                <= chunks[place].start + chunks[place].n_tokens
            ):
                raise StrayReport(f"step {self.started.id} tells hidden states that were not in it")
        return [(chunks[place].request, rows) for place, rows in report.pooled]

    def so_far(self) -> StepDone | None:
        """The iterations that are known to have ended, as if the step had ended with them; None if none
        has."""
        if not self.ends_s:
            return None
        return StepDone(self.ends_s[-1], self.started.id, tuple(self.ends_s))


class NodeDevice:
    """A device; see the module. `instance` decides for it."""

    def __init__(
        self,
        index: InstanceId,
        setup: DeviceSetup,
        instance: Instance,
        memory: HostMemory,
        contents: Mapping[RequestId, Content],
        clock: Clock,
    ) -> None:
        self.index = index
        self.setup = setup
        self.instance = instance
        self.state = DeviceState.STARTING
        self.port: ExecutorPort | None = None
        """Its executor; None while there is none."""
        self.ready = False
        """True if the executor has said that the device has its memory."""
        self.dying = ""
        """Why its executor was killed, while its end is awaited."""
        self.heard_s = 0.0
        """When the executor last said anything."""
        self.silent_s = 0.0
        """How long it may be silent."""
        self.n_deaths = 0
        self.fault = ""
        self.step: StepInFlight | None = None
        self.stalls = Stalls(instance.cost)
        self._copies: dict[int, StartedCopy] = {}
        self._memory = memory
        self._contents = contents
        self._clock = clock
        self._unsent: list[Instruction] = []
        self._descriptors: list[int] = []

    # ── towards the executor ────────────────────────────────────────────────────────────────────────────────

    def say(self, instruction: Instruction) -> None:
        """Have the executor told with the next `flush`. Without one it is dropped: a new one is told
        everything that matters."""
        if self.port is not None and not self.dying:
            self._unsent.append(instruction)

    def flush(self) -> None:
        """Send what the executor has to be told, as one message."""
        if self._unsent and self.port is not None:
            instructions, self._unsent = tuple(self._unsent), []
            descriptors, self._descriptors = self._descriptors, []
            self.port.send(instructions, descriptors)

    def start(self, started: Started) -> DoesNotFit | None:
        """Have an operation carried out. Returns why it cannot be, if the node lacks memory for it."""
        self.stalls.began(started, self._clock.now_s())
        if isinstance(started, StartedStep):
            drawing = tuple(
                chunk.request
                for chunk in started.operation.chunks
                if self._contents[chunk.request].draws(chunk.start + chunk.n_tokens)
            )
            self.step = StepInFlight(started, drawing)
        else:
            self._copies[started.id] = started
        try:
            self._map(started)
        except DoesNotFit as error:
            return error
        self.say(launch_of(started, self.instance, self._contents))
        if isinstance(started, StartedActivation):
            # While the bytes are on their way: re-pointing takes as long as a tenth of the copy.
            self.bind(started.model.id)
        return None

    def stop_step(self) -> None:
        if self.step is not None:
            self.say(StopStep(OperationId(self.step.started.id)))

    def bind(self, model: ModelId) -> None:
        self.say(binding_of(self.instance.models[model].facts, self.instance))

    def copy_ended(self, started: StartedCopy, *, failed: bool) -> None:
        """Have runners point to where the weights are now."""
        match started:
            case StartedActivation(model=model) if failed and model.id in self.instance.models:
                self.say(Unbind(model.id))
            case StartedCompaction(moves=moves):
                moved = self.instance.ledger.moved_models(moves)
                for model_id in sorted(moved & self.instance.resident_models.keys()):
                    self.bind(model_id)
            case _:
                pass

    def unmap(self, image: ImageId) -> None:
        self.say(UnmapImage(image))

    # ── from the executor ───────────────────────────────────────────────────────────────────────────────────

    def drew(self, drew: Drew) -> Drawn:
        """An iteration of the step in flight ended. Returns what was drawn."""
        step = self._step_of(drew.operation)
        self.stalls.stepped(self._clock.now_s())
        drawn = step.drawn(drew)
        step.ends_s.append(drew.at_s)
        return drawn

    def faults(self, completed: StepCompleted) -> dict[RequestId, str]:
        """Why requests of the step in flight cannot go on."""
        drawing = self._step_of(completed.operation).drawing
        return {drawing[place]: fault for place, fault in completed.faults if 0 <= place < len(drawing)}

    def pooled(self, completed: StepCompleted) -> PooledOfPrompts:
        """The sums of hidden states that the step in flight told."""
        return self._step_of(completed.operation).pooled(completed)

    def step_completed(self, completed: StepCompleted) -> tuple[ToldOfPrompts, Drawn, StepDone]:
        """The step ended. Returns what it told of prompts, what its last iteration drew, and the event."""
        step, ends_s = self._step_of(completed.operation), completed.ends_s
        drawn, told = step.drawn(completed), step.told(completed)
        n_before, n_drawing = len(step.ends_s), len(step.drawing)
        places = (*completed.stopped, *(place for place, _ in completed.faults))
        if len(ends_s) != n_before + 1 or not all(0 <= place < n_drawing for place in places):
            raise StrayReport(f"step {completed.operation} has ended otherwise than it was reported before")
        self.step = None
        self.stalls.ended(completed.operation, self._clock.now_s())
        faulty = [place for place, _ in completed.faults]
        finished = (
            *((step.drawing[place], FinishReason.FAILED) for place in faulty),
            *((step.drawing[place], FinishReason.STOP) for place in completed.stopped if place not in faulty),
        )
        drawn = [one for place, one in enumerate(drawn) if place not in faulty]
        return told, drawn, StepDone(ends_s[-1], step.started.id, ends_s, finished)

    def copy_completed(self, completed: CopyCompleted) -> CopyDone:
        """A copy or fetch ended. Returns the event."""
        started = self._copies.pop(completed.operation, None)
        if started is None:
            raise StrayReport(f"copy {completed.operation} has ended, which is not in flight")
        self.stalls.ended(completed.operation, self._clock.now_s())
        done = CopyDone(
            completed.at_s, completed.operation, completed.error, completed.code, completed.superseded
        )
        if isinstance(started, StartedFetch):
            for image in started.images:
                if done.ok:
                    self._memory.end_fetch(image.id)
                else:
                    self._drop_image(image.id)
        return done

    def load_progressed(self, progressed: CopyProgressed) -> StartedLoad | None:
        """A copy or fetch has shown progress. Returns it if it brings weights."""
        self.stalls.advanced(progressed.operation, self._clock.now_s())
        started = self._copies.get(progressed.operation)
        return started if isinstance(started, (StartedActivation, StartedFetch)) else None

    # ── its life ────────────────────────────────────────────────────────────────────────────────────────────

    def began(self, port: ExecutorPort, silent_s: float) -> None:
        """An executor was started."""
        self.port, self.ready, self.dying = port, False, ""
        self.heard_s, self.silent_s = self._clock.now_s(), silent_s

    def kill(self, why: str) -> None:
        """End the executor. Its end is reported later."""
        if self.port is not None and not self.dying:
            self.dying = why
            self._forget_unsent()
            self.port.kill()

    def lost(self, instance: Instance) -> None:
        """The executor has ended; `instance` decides from now on."""
        self.port, self.ready, self.dying = None, False, ""
        self.step = None
        self._copies.clear()
        self._forget_unsent()
        self._memory.forget_device(self.index)
        self.instance = instance
        self.setup = _with_arena(self.setup, instance.device.arena_bytes)
        self.stalls = Stalls(instance.cost)

    def resized(self, arena_bytes: int) -> None:
        """The arena has another size, with which the next executor starts too."""
        self.setup = _with_arena(self.setup, arena_bytes)

    def load_in_flight(self) -> StartedLoad | None:
        """A load that the executor carries out now, if there is one."""
        loads = (c for c in self._copies.values() if isinstance(c, (StartedActivation, StartedFetch)))
        return next(loads, None)

    def meet_an_image(self, owned: Container[ImageId]) -> None:
        """While the device has nothing to do, give its executor an image that another one has read, so that
        its model is ready there: a model that is met first when it is needed costs 0.4 s, which requests
        wait for that lost their device. Only images that are `owned`: an executor gets the models ready that
        have the image when it comes."""
        if not self.ready or not self.instance.is_idle:
            return
        for id, image in self._memory.filled():
            if id in owned and self.index not in image.mapped_by:
                self._map_filled(id, image)
                self.flush()  # before the host cache can drop it: no operation keeps it
                return

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _map(self, started: Started) -> None:
        """Give the executor the images that it needs for a load. Raises DoesNotFit."""
        if isinstance(started, StartedActivation):
            for image in started.images:
                host_image = self._memory.images[image.id]
                if self.index not in host_image.mapped_by:
                    self._map_filled(image.id, host_image)
        elif isinstance(started, StartedFetch):
            for image in started.images:
                host_image = self._memory.begin_fetch(image, self.index)
                self._map_image(image.id, image.n_bytes, host_image.descriptor, filled=False)

    def _map_filled(self, image: ImageId, host_image: HostImage) -> None:
        host_image.mapped_by.add(self.index)
        self._map_image(image, host_image.n_bytes, host_image.descriptor, filled=True)

    def _map_image(self, image: ImageId, n_bytes: int, descriptor: int, *, filled: bool) -> None:
        if self.port is not None and not self.dying:
            self._unsent.append(MapImage(image, n_bytes, filled))
            self._descriptors.append(descriptor)

    def _drop_image(self, image: ImageId) -> None:
        """A fetch of this device failed. Nobody else has the image."""
        if self._memory.drop(image):
            self.unmap(image)

    def _step_of(self, operation: int) -> StepInFlight:
        if self.step is None or self.step.started.id != operation:
            raise StrayReport(f"step {operation} is reported, which is not in flight")
        return self.step

    def _forget_unsent(self) -> None:
        self._unsent.clear()
        self._descriptors.clear()


def _with_arena(setup: DeviceSetup, arena_bytes: int) -> DeviceSetup:
    facts = replace(setup.facts, arena_bytes=arena_bytes)
    return DeviceSetup(facts, setup.kind, setup.gpu, setup.paged_kv)
