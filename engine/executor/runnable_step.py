"""A launched step as a runner takes it, and how it is run."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

import torch

from tokenmux.core.clock import Clock
from tokenmux.core.errors import InternalError
from tokenmux.device.device_protocol import Post
from tokenmux.executor.mask_process import MaskProcess
from tokenmux.messages.completions import Drew, StepCompleted
from tokenmux.messages.launches import OperationId, StepSegment
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.sampling.masks import StepConstraint
from tokenmux.models.sampling.past_tokens import PastTokens


@dataclass(frozen=True, slots=True)
class RunnableStep:
    """A step with everything resolved. It runs on the compute channel's thread and uses no shared state."""

    runner: Runner
    operation: OperationId
    segments: list[Segment]
    kv: torch.Tensor
    repeat: int
    clock: Clock

    def run(self, stop: Event, post: Post, settle: Callable[[], None]) -> None:
        """Run up to `repeat` iterations, fewer if a request stops or the step is asked to."""
        batch = self.runner.prepare(self.segments, self.kv)
        stops = [segment.stop_token_ids for segment in self.segments if segment.draw]
        ends_s: list[float] = []
        while True:
            drawn, log_probabilities, told, faults, pooled = self.runner.draw(batch)
            settle()
            ends_s.append(self.clock.now_s())
            stopped = tuple(i for i, token in enumerate(drawn) if token in stops[i])
            if stopped or faults or len(ends_s) == self.repeat or stop.is_set():
                break
            post.tell(Drew(self.operation, ends_s[-1], drawn, log_probabilities))
            batch.advance(drawn)
        completed = StepCompleted(
            self.operation, tuple(ends_s), drawn, stopped, log_probabilities, told, faults, pooled
        )
        post.tell(completed)


def step_segment(segment: StepSegment, masks: MaskProcess | None) -> Segment:
    """The segment of a launch with what computes the masks of its grammar. Raises InternalError if its
    grammar was not added before."""
    constraint = None
    if segment.grammar is not None:
        if masks is None:
            raise InternalError(f"grammar {segment.grammar.id} was not added before its first step")
        constraint = StepConstraint(masks, segment.grammar.id, list(segment.grammar.output))
    return Segment(
        token_ids=segment.token_ids,
        start=segment.start,
        n_prompt=segment.n_prompt,
        blocks=segment.blocks,
        draw=segment.draws,
        sampling=segment.sampling,
        min_tokens=segment.min_tokens,
        stop_token_ids=segment.stop_token_ids,
        past=None if segment.past is None else PastTokens(segment.past.prompt, segment.past.output),
        telling=segment.telling,
        constraint=constraint,
        pooled=segment.pooled,
    )
