"""One model on a device: its entry, its runner, and where its weights are."""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, RLock

import torch

from tokenmux.core.facts import ModelFacts
from tokenmux.models.catalogue.entry import Entry
from tokenmux.models.network.runner import Runner
from tokenmux.models.weights.image import FileStamp
from tokenmux.processes import garbage_collection


@dataclass(slots=True)
class HostedModel:
    """A registered model. Its entry is opened and its skeleton built by the first thread that asks: the one
    that fetches or maps an image of it."""

    facts: ModelFacts
    path: Path
    cell_tokens: int
    device: torch.device
    seen: FileStamp | None = None
    offset: int | None = None
    """Where its weights are in the arena, if they are."""
    _weights: torch.Tensor | None = None
    _is_ready: bool = False
    _entry: Entry | None = None
    _runner: Runner | None = None
    _opening: RLock = field(default_factory=RLock)
    _binding: Lock = field(default_factory=Lock)
    """Never held for long: the executor's main thread takes it."""

    def entry(self) -> Entry:
        if self._entry is None:
            with self._opening:
                if self._entry is None:
                    self._entry = Entry.load(self.path, block_size=self.facts.kv.block_size)
        return self._entry

    def runner(self) -> Runner:
        if self._runner is None:
            with self._opening:
                if self._runner is None:
                    self._runner = self._new_runner()
                    garbage_collection.settle()
        return self._runner

    def _new_runner(self) -> Runner:
        return Runner(
            self.entry().skeleton(packed=self.device.type == "cpu"),
            self.facts.kv,
            prefill_chunk_tokens=self.cell_tokens,
        )

    def make_ready(self, image: torch.Tensor, *, packed: bool) -> Runner | None:
        """Rearrange an image just read, if the device is the processor and it is not `packed` already. The
        first time, before others have the runner, also do what would make a first step slow.

        Returns a second runner, on which a decode step can be recorded, if that is to be done. Raises
        UnsupportedModel if steps on the device cannot be exact.
        """
        with self._opening:
            runner = self.runner()
            is_recordable = self.device.type == "cpu" and len(self.facts.images) == 1
            if is_recordable and not packed:
                runner.pack(image)
            if self._is_ready:
                return None
            runner.make_ready(self.device, self.path)
            if len(self.facts.images) == 1:
                # A model that cannot be bound fails here, where only that model is affected.
                runner.bind(image)
                runner.unbind()
            twin = self._new_runner() if is_recordable else None
            with self._binding:
                self._is_ready = True
                if self._weights is not None:
                    runner.bind(self._weights)
            return twin

    def record(self, twin: Runner, image: torch.Tensor) -> None:
        """Record a decode step over an image in host memory: it takes over a second, and meanwhile the model
        steps without."""
        twin.bind(image)
        twin.record()
        twin.unbind()  # it may live on for a while in cycles, and the image must not
        self.runner().share_recording(twin)

    def bind(self, offset: int, weights: torch.Tensor) -> None:
        with self._binding:
            self.offset, self._weights = offset, weights
            if self._is_ready:
                self.runner().bind(weights)

    def unbind(self) -> None:
        with self._binding:
            self.offset = self._weights = None
            if self._is_ready:
                self.runner().unbind()

    def forget_kv(self) -> None:
        if self._runner is not None:
            self._runner.forget_kv()
