"""Acts on requests and models that are found to break nodes: they are given to no other node."""

import logging

from tokenmux.core.errors import NotServable
from tokenmux.core.facts import ModelId
from tokenmux.messages.commands import Load
from tokenmux.server.front.changes import Changes
from tokenmux.server.front.live_requests import LiveRequests
from tokenmux.server.front.served_models import ServedModel, ServedModels
from tokenmux.server.front.trials import Suspected

logger = logging.getLogger(__name__)

CONVICTIONS = 2
CONVICTIONS_OF_PROVEN = 5
"""After this many requests of one model that broke nodes, with none that made progress in between and none
that waits, the model is refused; sooner if no request of it has ever made progress."""


class Verdicts:
    """Ends guilty requests, and refuses guilty models."""

    def __init__(self, models: ServedModels, requests: LiveRequests, changes: Changes) -> None:
        self._models = models
        self._requests = requests
        self._changes = changes

    def proven(self, model: ModelId) -> None:
        """A request of this model made progress: earlier convictions no longer count against the model."""
        if model in self._models:
            served = self._models.find(model)
            served.n_convicted, served.proven = 0, True

    def convict(self, guilty: Suspected) -> None:
        """Act on a request or model that was the only possible cause when a node broke."""
        if isinstance(guilty, Load):
            if guilty.model in self._models:  # it may have been removed meanwhile
                served = self._models.find(guilty.model)
                self.refuse(served, "nodes broke again and again when it was loaded")
            return
        live = self._requests.find(guilty)
        said = (
            f"request {live.request_id} is given up: nodes broke over it, the last one while it was tried "
            "alone; do not send it again, and please report it with the server's log"
        )
        self._requests.fail(live, NotServable(said))
        if live.model not in self._models:
            return
        served = self._models.find(live.model)
        served.n_convicted += 1
        n = served.n_convicted
        limit = CONVICTIONS_OF_PROVEN if served.proven else CONVICTIONS
        if n >= limit and not any(other.model == live.model for other in self._requests):
            self.refuse(served, f"{n} of its requests broke nodes, and none made progress in between")

    def refuse(self, served: ServedModel, why: str) -> None:
        """Give this model to no node from now on. Its requests end with the reason."""
        model = served.facts.id
        served.refusal = NotServable(
            f"{model} is not served: {why}; look at the server's log, "
            "then unregister it or restart the server"
        )
        logger.error("%s", served.refusal)
        for live in self._requests:
            if live.model == model:
                self._requests.end(live, served.refusal)
        self._changes.notify()
