"""The runnable side of the models on one device: skeletons, the weights they point to, and the steps that run
on them.

The node decides which weights are where; this follows, and turns a launch into rows of a step
(`runnable_step.py`). A skeleton (`hosted_model.py`) is built once, when an image of its model is first
fetched or mapped, beside the steps of others, and kept.

    fetched or mapped ──▶ skeleton, rule of rows ──▶ ready: may be bound, and step
                                                        └──▶ recorded, beside its own steps
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import torch

from tokenmux.core.clock import Clock
from tokenmux.core.errors import (
    BadCheckpoint,
    DoesNotFit,
    InternalError,
    TokenmuxError,
    UnsupportedModel,
)
from tokenmux.core.facts import Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.grammar import Grammar
from tokenmux.device.channel import ChannelThread
from tokenmux.executor.hosted_model import HostedModel
from tokenmux.executor.mask_process import MaskProcess
from tokenmux.executor.runnable_step import RunnableStep, step_segment
from tokenmux.executor.warming import Warmer
from tokenmux.messages.completions import GrammarReady
from tokenmux.messages.launches import StepLaunch
from tokenmux.models.weights.image import DTYPES, read_image

_log = logging.getLogger(__name__)

RECORDING_S = 5.0
"""A recording that has not ended by then is left to the end of the process."""


class ModelHost:
    """Keeps a runner for each registered model, over the arena that its device gives it."""

    def __init__(
        self,
        cell_tokens: int,
        clock: Clock,
        warmer: Warmer | None = None,
        grammar_ready: Callable[[GrammarReady], None] = lambda _: None,
    ) -> None:
        """If steps run on a GPU, `warmer` compiles their kernels before requests wait for them.
        `grammar_ready` is called, from other threads, when a grammar has been compiled or refused."""
        self._cell_tokens = cell_tokens
        self._clock = clock
        self._warmer = warmer
        self._models: dict[ModelId, HostedModel] = {}
        self._kv_views: dict[tuple[KvShape, torch.dtype], torch.Tensor] = {}
        self._recorder = ChannelThread("recorder", _not_recorded)
        self._masks: dict[ModelId, MaskProcess] = {}
        self._grammar_ready = grammar_ready
        self._closing = False

    def settle(self) -> None:
        """Return when all models that are ready have been recorded: steps are not measured before."""
        settled = Event()
        self._recorder.submit(0, settled.set)
        settled.wait()

    def close(self) -> None:
        """End after the recording in progress."""
        self._closing = True
        for masks in self._masks.values():
            masks.close()
        self._recorder.close(RECORDING_S)

    def attach(self, arena: torch.Tensor) -> None:
        """Use `arena`, all of the device's memory for weights and KV, as bytes."""
        self._arena = arena

    def detach(self) -> None:
        """The arena is about to be replaced: unbind all models and drop everything that points into it."""
        del self._arena
        self._kv_views.clear()
        for model in self._models.values():
            model.unbind()
            model.forget_kv()

    # ── what the node says ──────────────────────────────────────────────────────────────────────────────────

    def add(self, facts: ModelFacts, path: str) -> None:
        """Note where the model's catalogue entry is. The first fetch or mapped image opens its files."""
        self._models[facts.id] = HostedModel(facts, Path(path), self._cell_tokens, self._arena.device)
        if self._warmer is not None:
            self._warmer.begin(Path(path))

    def remove(self, model: ModelId) -> None:
        del self._models[model]
        masks = self._masks.pop(model, None)
        if masks is not None:
            masks.close()

    def add_grammar(self, model_id: ModelId, grammar: Grammar) -> None:
        """Compile a grammar for the outputs of a model, in another process."""
        if model_id not in self._masks:
            model = self._models[model_id]
            self._masks[model_id] = MaskProcess(
                model_id, model.path, model.facts.vocab_size, self._grammar_ready
            )
        self._masks[model_id].add(grammar)

    def remove_grammar(self, model_id: ModelId, grammar_id: str) -> None:
        if model_id in self._masks:
            self._masks[model_id].remove(grammar_id)

    def bind(self, model_id: ModelId, offset: int) -> None:
        """Point the model at its weights at `offset` of the arena; as soon as it is ready, if it is not."""
        model = self._models[model_id]
        if len(model.facts.images) != 1:
            raise InternalError(f"{model_id} has {len(model.facts.images)} images; a runner is bound to one")
        model.bind(offset, self._arena[offset : offset + model.facts.n_bytes])

    def unbind(self, model: ModelId) -> None:
        self._models[model].unbind()

    # ── what the device asks ────────────────────────────────────────────────────────────────────────────────

    def read_image(
        self, model_id: ModelId, image: Image, into: memoryview, progress: Callable[[int], None]
    ) -> None:
        """Fill the buffer from the image's file, on the fetch channel's reader. The checksum is compared if
        the file is new or was modified.

        Raises TokenmuxError with the reason if the model cannot be run. Whatever goes wrong in a model's
        files or its modelling code affects only that model.
        """
        model = self._models[model_id]
        with _reasons_of(model_id):
            manifest = model.entry().manifest
        if manifest.n_bytes != image.n_bytes:
            raise BadCheckpoint(
                f"{model.path}: its image has {manifest.n_bytes} bytes, not {image.n_bytes} as when "
                "the server took "
                "it up; restart the server"
            )
        model.seen = read_image(manifest, into, progress, seen=model.seen)
        self._make_ready(model, into, packed=False)

    def adopt_image(self, image: ImageId, content: memoryview, opened: Callable[[], None]) -> None:
        """Get the models of this image ready, which another executor has read and arranged. `opened` is
        called once their files are. Raises TokenmuxError if one cannot be run."""
        models = [m for m in list(self._models.values()) if any(own.id == image for own in m.facts.images)]
        for model in models:
            with _reasons_of(model.facts.id):
                model.entry()
        opened()
        for model in models:
            self._make_ready(model, content, packed=True)

    def prepare_step(self, launch: StepLaunch) -> RunnableStep:
        model = self._models[launch.model]
        kv = self._kv_view(model.facts.kv, DTYPES[model.entry().manifest.dtype])
        masks = self._masks.get(launch.model)
        segments = [step_segment(segment, masks) for segment in launch.segments]
        return RunnableStep(model.runner(), launch.operation, segments, kv, launch.repeat, self._clock)

    def kv_shape(self, model: ModelId) -> KvShape:
        return self._models[model].facts.kv

    def kv_dtype(self, model: ModelId) -> torch.dtype:
        """The dtype of the model's keys and values. May read its files."""
        return DTYPES[self._models[model].entry().manifest.dtype]

    def weights_span(self, model: ModelId) -> tuple[int, int]:
        """The bytes of the arena that the model's weights take."""
        start = self._models[model].offset
        if start is None:
            raise InternalError(f"{model} is not bound to weights")
        return start, start + self._models[model].facts.n_bytes

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _make_ready(self, model: HostedModel, content: memoryview, *, packed: bool) -> None:
        image = torch.frombuffer(content, dtype=torch.uint8)
        with _reasons_of(model.facts.id):
            twin = model.make_ready(image, packed=packed)
        if twin is not None:
            self._recorder.submit(0, lambda: None if self._closing else model.record(twin, image))
        if self._warmer is not None:
            self._warmer.wait(model.path)

    def _kv_view(self, shape: KvShape, dtype: torch.dtype) -> torch.Tensor:
        """The whole arena as `kv[block, layer, k|v, head, token, dim]` of this shape."""
        view = self._kv_views.get((shape, dtype))
        if view is None:
            n_blocks = self._arena.numel() // shape.block_bytes
            flat = self._arena[: n_blocks * shape.block_bytes].view(dtype)
            view = flat.view(n_blocks, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim)
            self._kv_views[shape, dtype] = view
        return view


def _not_recorded(_: int, error: BaseException) -> None:
    _log.error("a model keeps stepping without a recording", exc_info=error)


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
