"""The models that the front knows, by name, with their tokenizers loaded when first needed.

A model can be known but refused (it does not fit, or the node does not take it): it is listed with the
reason, and requests for it get that reason.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from tokenmux.core.errors import NotFound, NotServable, TokenmuxError
from tokenmux.core.facts import ModelFacts
from tokenmux.server.front.model_store import StoredModel
from tokenmux.server.front.model_text import ModelText
from tokenmux.server.front.names import check_name_length, closest

NAMED_IN_ERRORS = 12
"""Most models that a message names."""


@dataclass(slots=True, eq=False)
class ServedModel:
    """One model. `refusal` says why requests for it are refused, if they are. A model that could not be
    read has no entry."""

    entry: StoredModel | None
    pinned: bool = False
    refusal: TokenmuxError | None = None
    n_convicted: int = 0
    """Requests for it that broke nodes since one made progress: its weights may be the cause."""
    proven: bool = False
    """True if a request for it has ever made progress."""
    loading: "asyncio.Task[ModelText] | None" = None
    name: str = ""
    """Taken from the entry, if there is one."""

    def __post_init__(self) -> None:
        if self.entry is not None:
            self.name = self.entry.facts.id

    @property
    def facts(self) -> ModelFacts:
        """The model's facts. Raises the refusal of a model without an entry."""
        return self.whole().facts

    @property
    def path(self) -> Path:
        """The folder of its entry. Raises as `facts`."""
        return self.whole().path

    def whole(self) -> StoredModel:
        """Its entry. Raises the refusal of a model without one."""
        if self.entry is None:
            raise self.refusal or NotServable(f"{self.name} is not in the catalogue")
        return self.entry


class ServedModels:
    """Models by name, in the order of their names."""

    def __init__(self, threads: Executor) -> None:
        """`threads` run what may block: loading tokenizers."""
        self._threads = threads
        self._models: dict[str, ServedModel] = {}
        self.leaving: list[ServedModel] = []
        """Models that are being removed: they are served no longer, and the node may still pin them."""

    def __iter__(self) -> Iterator[ServedModel]:
        return (self._models[name] for name in sorted(self._models))

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def __len__(self) -> int:
        return len(self._models)

    def add(self, served: ServedModel) -> None:
        self._models[served.name] = served

    def remove(self, name: str) -> None:
        self._models.pop(name, None)

    def pinned(self) -> list[ModelFacts]:
        """The models that are pinned: served, or on their way out."""
        everything = (*self, *self.leaving)
        return [served.facts for served in everything if served.pinned and served.refusal is None]

    def find(self, name: str) -> ServedModel:
        """The model called `name`. Raises NotFound with the closest names, InvalidRequest for an
        impossible name."""
        check_name_length(name)
        served = self._models.get(name)
        if served is None:
            raise NotFound(self._no_such_model(name), model=name)
        return served

    def accepting(self, name: str) -> ServedModel:
        """The model called `name`, if it takes requests. Raises NotFound, or the reason why it does not."""
        served = self.find(name)
        if served.refusal is not None:
            raise served.refusal
        return served

    def accepts(self, served: ServedModel) -> bool:
        """True if this model is still the one of its name, and takes requests."""
        return self._models.get(served.name) is served and served.refusal is None

    async def text(self, served: ServedModel) -> ModelText:
        """Facts about the model's text, loaded once for all callers, and again if that failed."""
        if served.loading is None or (served.loading.done() and served.loading.exception() is not None):
            served.loading = asyncio.create_task(self._load(served), name=f"tokenizer of {served.name}")
        return await asyncio.shield(served.loading)

    async def _load(self, served: ServedModel) -> ModelText:
        return await asyncio.get_running_loop().run_in_executor(self._threads, served.whole().tokenizer)

    def _no_such_model(self, name: str) -> str:
        if not name:
            said = "no model was named"
        else:
            said = f"no model named {name!r}"
        if not self._models:
            return f"{said}: none is served; register one first"
        close = closest(name, self._models)
        if close:
            said += "; did you mean " + " or ".join(repr(other) for other in close) + "?"
        names = sorted(self._models)
        listed = ", ".join(names[:NAMED_IN_ERRORS])
        more = f" and {len(names) - NAMED_IN_ERRORS} more" if len(names) > NAMED_IN_ERRORS else ""
        return f"{said} (served: {listed}{more})"
