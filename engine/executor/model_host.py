"""The runnable side of the models on one device: skeletons, the weights they point to, and the steps that run
on them.

The instance decides which weights are where; this follows, and turns a started step into rows of token ids
and indices of KV blocks. A skeleton is built once, when its model is first fetched, on the fetch channel's
thread, and kept.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock

import torch

from tokenmux.core.clock import Clock
from tokenmux.core.errors import (
    BadCheckpoint,
    DoesNotFit,
    InternalError,
    TokenmuxError,
    UnsupportedModel,
)
from tokenmux.core.event import StepDone
from tokenmux.core.facts import Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.plan import Chunk
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.core.started import StartedStep
from tokenmux.device.device_protocol import Post
from tokenmux.executor import garbage_collection
from tokenmux.executor.request_content import Content
from tokenmux.executor.warming import Warmer
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.weights.image import FileStamp, read_image
from tokenmux.scheduler.instance.instance import Instance

_log = logging.getLogger(__name__)


class ModelHost:
    """Keeps a runner for each registered model, over the arena that its device gives it."""

    def __init__(
        self,
        instance: Instance,
        clock: Clock,
        contents: Mapping[RequestId, Content],
        warmer: Warmer | None = None,
    ) -> None:
        """If steps run on a GPU, `warmer` compiles their kernels before requests wait for them."""
        self._instance = instance
        self._clock = clock
        self._contents = contents
        self._warmer = warmer
        self._models: dict[ModelId, _Model] = {}
        self._kv_views: dict[tuple[KvShape, torch.dtype], torch.Tensor] = {}

    def attach(self, arena: torch.Tensor) -> None:
        """Use `arena`, all of the device's memory for weights and KV, as bytes."""
        self._arena = arena

    def detach(self) -> None:
        """The arena is about to be replaced: unbind all models and drop everything that points into it."""
        del self._arena
        self._kv_views.clear()
        for model in self._models.values():
            model.forget_kv()

    # ── what the engine says ────────────────────────────────────────────────────────────────────────────────

    def add(self, facts: ModelFacts, path: str) -> None:
        """Note where the model's catalogue entry is. The first fetch opens its files."""
        self._models[facts.id] = _Model(
            facts, Path(path), self._instance.device.prefill_chunk_tokens, self._arena.device
        )
        if self._warmer is not None:
            self._warmer.begin(Path(path))

    def remove(self, model: ModelId) -> None:
        del self._models[model]

    def bind(self, model: ModelFacts) -> None:
        if len(model.images) != 1:
            raise InternalError(f"{model.id} has {len(model.images)} images; a runner is bound to one")
        ledger = self._instance.ledger
        offset = ledger.arena.offset(ledger.extent(model.images[0].id))
        self._runner(model.id).bind(self._arena[offset : offset + model.images[0].n_bytes])

    def unbind(self, model: ModelId) -> None:
        self._models[model].unbind()

    # ── what the device asks ────────────────────────────────────────────────────────────────────────────────

    def read_image(self, image: Image, into: memoryview, progress: Callable[[int], None]) -> None:
        """Fill the buffer from the image's file, on the fetch channel's thread. The checksum is compared if
        the file is new or was modified.

        Raises TokenmuxError with the reason if the model cannot be run. Whatever goes wrong in a model's
        files or its modelling code affects only that model.
        """
        model = self._owner_of(image.id)
        with _reasons_of(model.facts.id):
            manifest = model.entry().manifest
        if manifest.n_bytes != image.n_bytes:
            raise BadCheckpoint(
                f"{model.path}: its image has {manifest.n_bytes} bytes, not {image.n_bytes} as when "
                "the server took "
                "it up; restart the server"
            )
        model.seen = read_image(manifest, into, progress, seen=model.seen)
        with _reasons_of(model.facts.id):
            model.make_ready(torch.frombuffer(into, dtype=torch.uint8))
        if self._warmer is not None:
            self._warmer.wait(model.path)

    def prepare_step(self, started: StartedStep) -> "RunnableStep":
        """Resolve token ids and block handles; on the engine's thread."""
        step = started.operation
        model = self._models[step.model]
        runner = self._runner(step.model)
        segments = [self._segment(chunk) for chunk in step.chunks]
        kv = self._kv_view(model.facts.kv, model.entry().manifest.dtype)
        requests = tuple(chunk.request for chunk in step.chunks)
        return RunnableStep(runner, segments, requests, kv, step.repeat, self._clock)

    def kv_dtype(self, request: RequestId) -> torch.dtype:
        """The dtype of the request's keys and values; called for requests that have some."""
        return self._models[self._instance.requests[request].request.model].entry().manifest.dtype

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _segment(self, chunk: Chunk) -> Segment:
        content = self._contents[chunk.request]
        request = self._instance.requests[chunk.request]
        index = self._instance.ledger.blocks.block_index
        end = chunk.start + chunk.n_tokens
        return Segment(
            token_ids=content.token_ids[chunk.start : end],
            start=chunk.start,
            n_prompt=request.request.n_prompt,
            blocks=[index(handle) for handle in request.kv.device if handle is not None],
            draw=end == len(content.token_ids),
            sampling=content.submit.sampling,
            min_tokens=content.submit.min_tokens,
            stop_token_ids=content.submit.stop_token_ids,
        )

    def _kv_view(self, shape: KvShape, dtype: torch.dtype) -> torch.Tensor:
        """The whole arena as `kv[block, layer, k|v, head, token, dim]` of this shape."""
        view = self._kv_views.get((shape, dtype))
        if view is None:
            n_blocks = self._arena.numel() // shape.block_bytes
            flat = self._arena[: n_blocks * shape.block_bytes].view(dtype)
            view = flat.view(n_blocks, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim)
            self._kv_views[shape, dtype] = view
        return view

    def _runner(self, model_id: ModelId) -> Runner:
        return self._models[model_id].runner()

    def _owner_of(self, image: ImageId) -> "_Model":
        return next(m for m in list(self._models.values()) if any(i.id == image for i in m.facts.images))


@contextmanager
def _reasons_of(model: ModelId) -> Iterator[None]:
    """Turn foreign exceptions into the reason why this model cannot be run."""
    try:
        yield
    except TokenmuxError:
        raise
    except MemoryError as error:
        raise DoesNotFit(f"{model} cannot be prepared to run: the host's memory is exhausted") from error
    except Exception as error:
        _log.exception("%s cannot be prepared", model)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnsupportedModel(f"{model} cannot be prepared to run: {reason}") from error


@dataclass(slots=True)
class _Model:
    """A registered model. Its entry is opened and its skeleton built by the first thread that asks: the fetch
    channel's."""

    facts: ModelFacts
    path: Path
    prefill_chunk_tokens: int
    device: torch.device
    seen: FileStamp | None = None
    _is_ready: bool = False
    _entry: Entry | None = None
    _runner: Runner | None = None
    _opening: RLock = field(default_factory=RLock)

    def entry(self) -> Entry:
        with self._opening:
            if self._entry is None:
                self._entry = Entry.load(self.path, block_size=self.facts.kv.block_size)
            return self._entry

    def runner(self) -> Runner:
        with self._opening:
            if self._runner is None:
                self._runner = Runner(
                    self.entry().skeleton(packed=self.device.type == "cpu"),
                    self.facts.kv,
                    prefill_chunk_tokens=self.prefill_chunk_tokens,
                )
                garbage_collection.settle()
            return self._runner

    def make_ready(self, image: torch.Tensor) -> None:
        """Rearrange an image just read, if the device is the processor. The first time, before others have
        the runner, also do what would make a first step slow.

        Raises UnsupportedModel if steps on the device cannot be exact.
        """
        with self._opening:
            runner = self.runner()
            is_recordable = self.device.type == "cpu" and len(self.facts.images) == 1
            if is_recordable:
                runner.pack(image)
            if self._is_ready:
                return
            runner.make_ready(self.device)
            if len(self.facts.images) == 1:
                # A model that cannot be bound fails here, where only that model is affected.
                runner.bind(image)
                if is_recordable:
                    runner.record()
                runner.unbind()
            self._is_ready = True

    def unbind(self) -> None:
        if self._runner is not None:
            self._runner.unbind()

    def forget_kv(self) -> None:
        if self._runner is not None:
            self._runner.forget_kv()


@dataclass(frozen=True, slots=True)
class RunnableStep:
    """A step with everything resolved. It runs on the compute channel's thread and uses no shared state."""

    runner: Runner
    segments: list[Segment]
    requests: tuple[RequestId, ...]
    kv: torch.Tensor
    repeat: int
    clock: Clock

    def kv_blocks(self) -> list[tuple[Sequence[int], int]]:
        return [(segment.blocks, segment.start) for segment in self.segments]

    def run(self, operation: int, interrupted: Event, post: Post, settle: Callable[[], None]) -> None:
        """Run up to `repeat` iterations, fewer if a request stops or the step is interrupted."""
        batch = self.runner.prepare(self.segments, self.kv)
        ends_s: list[float] = []
        finished: tuple[tuple[RequestId, FinishReason], ...] = ()
        while True:
            tokens = self.runner.step(batch)
            settle()
            ends_s.append(self.clock.now_s())
            drawn = [
                (request, token, segment)
                for request, token, segment in zip(self.requests, tokens, self.segments, strict=True)
                if token is not None
            ]
            post.drawn(ends_s[-1], tuple((request, token) for request, token, _ in drawn))
            finished = tuple(
                (request, FinishReason.STOP)
                for request, token, segment in drawn
                if token in segment.stop_token_ids
            )
            if finished or len(ends_s) == self.repeat or interrupted.is_set():
                break
            batch.advance([token for _, token, _ in drawn])
        post.done(StepDone(ends_s[-1], operation, tuple(ends_s), finished))
