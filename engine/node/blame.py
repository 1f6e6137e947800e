"""Finds the request, or the model, over which devices break, so that innocent ones lose only time.

A device that breaks had a step in flight: one of its requests may be the cause. A request to which this has
happened twice without progress in between is a suspect: it waits until it can run while no other suspect
does. If a device breaks then with the suspect in its step, the suspect is guilty.

A model is guilty if devices broke several times in a row while they were loading it.
"""

from collections.abc import Callable, Iterable

from tokenmux.core.facts import ModelId
from tokenmux.core.request import RequestId

N_DEATHS = 2
"""Devices that may break over a request before it is a suspect."""

N_LOADS = 3
"""Devices in a row that may break while they load a model."""

CLEARED_TOKENS = 2
"""A request that gets this many tokens from a device did not break it."""


class Blame:
    """Notes which requests were in a step when a device broke; see the module."""

    def __init__(self) -> None:
        self._n_deaths: dict[RequestId, int] = {}
        self._n_tokens: dict[RequestId, int] = {}
        """Tokens since the last death, of requests that were present at one."""
        self._waiting: dict[RequestId, None] = {}
        self._tried: RequestId | None = None
        self._n_loads: dict[ModelId, int] = {}
        """Devices that broke while they loaded the model, since it was last loaded."""

    def is_waiting(self, request: RequestId) -> bool:
        """True if the request is a suspect whose turn has not come: it must not run."""
        return request in self._waiting

    @property
    def in_use(self) -> bool:
        """True if any request was present at a death and has not been cleared."""
        return bool(self._n_deaths)

    def died(self, in_step: Iterable[RequestId]) -> tuple[RequestId | None, list[RequestId]]:
        """A device broke while these requests were in its step. Returns the guilty one, if it is known now,
        and the new suspects."""
        present = list(in_step)
        if self._tried in present:
            guilty, self._tried = self._tried, None
            return guilty, []
        suspects = []
        for request in present:
            self._n_tokens[request] = 0
            self._n_deaths[request] = self._n_deaths.get(request, 0) + 1
            if self._n_deaths[request] >= N_DEATHS:
                self._waiting[request] = None
                suspects.append(request)
        return None, suspects

    def drew(self, request: RequestId) -> bool:
        """The request got a token. True if that clears it."""
        if request not in self._n_deaths:
            return False
        self._n_tokens[request] += 1
        if self._n_tokens[request] < CLEARED_TOKENS:
            return False
        self.forget(request)
        return True

    def forget(self, request: RequestId) -> None:
        """The request is cleared, or has ended."""
        self._n_deaths.pop(request, None)
        self._n_tokens.pop(request, None)
        self._waiting.pop(request, None)
        if self._tried == request:
            self._tried = None

    def next_trial(self, can_run: Callable[[RequestId], bool]) -> RequestId | None:
        """The suspect that may run now, if one waits that can run and none is being tried."""
        if self._tried is not None:
            return None
        self._tried = next(filter(can_run, self._waiting), None)
        if self._tried is not None:
            del self._waiting[self._tried]
            self._n_tokens[self._tried] = 0
        return self._tried

    def adjourn(self, request: RequestId) -> None:
        """The request cannot run for now. If it was being tried, it waits again and others have their
        turn."""
        if self._tried == request:
            self._tried = None
            self._waiting[request] = None

    def died_loading(self, model: ModelId) -> bool:
        """A device broke while it was loading the model. True if the model is guilty."""
        self._n_loads[model] = self._n_loads.get(model, 0) + 1
        return self._n_loads[model] >= N_LOADS

    def loaded(self, model: ModelId) -> None:
        """The model was loaded, or removed: what was counted is forgiven."""
        self._n_loads.pop(model, None)
