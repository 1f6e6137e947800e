"""What follows when devices break over a request or a model: suspects are held back and tried apart, the
guilty end, and a model over whose load devices broke again and again is loaded no more.

`blame.py` finds who is guilty; this tells the pool.
"""

import logging
from collections.abc import Mapping

from tokenmux.core.clock import Clock
from tokenmux.core.event import Cancelled, ModelWanted, Paused, Resumed
from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.phases import PhaseChanged, RequestPhase
from tokenmux.core.request import FinishReason, RequestId
from tokenmux.node.blame import Blame
from tokenmux.node.node_device import NodeDevice
from tokenmux.node.request_content import Content
from tokenmux.scheduler.pool.pool import Pool

logger = logging.getLogger(__name__)


class Accusations:
    """Suspects and the guilty of one node. Clients pause their requests here, too: a suspect whose client
    reads again goes on when its turn comes."""

    def __init__(
        self,
        pool: Pool,
        devices: Mapping[InstanceId, NodeDevice],
        contents: Mapping[RequestId, Content],
        clock: Clock,
    ) -> None:
        self.refused: dict[ModelId, str] = {}
        """Models that devices cannot load, with the reason."""
        self._pool = pool
        self._devices = devices
        self._contents = contents
        self._clock = clock
        self._blame = Blame()
        self._paused: set[RequestId] = set()
        """Requests whose clients have stopped reading."""
        self._failures: dict[RequestId, str] = {}
        """Why requests fail that are ended here."""
        self._held: set[RequestId] = set()
        """Requests that wait for something besides their client and their trial."""

    def device_broke(self, device: NodeDevice) -> None:
        """Hold back suspects of the device's step, and end a request, or refuse a model, that is guilty."""
        load = device.load_in_flight()
        if load is not None and self._blame.died_loading(load.model.id):
            self._refuse(load.model.id)
        if device.step is None:
            return
        now_s = self._clock.now_s()
        present = (chunk.request for chunk in device.step.started.operation.chunks)
        guilty, suspects = self._blame.died(present)
        if guilty is not None:
            detail = (
                f"request {guilty} is given up: devices broke over it, the last one while it was tried "
                "alone; do not send it again, and please report it with the server's log"
            )
            self.fail(guilty, detail)
        for request in suspects:
            self._pool.apply_to_request(Paused(now_s, request))

    def try_next(self) -> None:
        """Let the next suspect run, if none is being tried."""
        waiting = self._paused | self._held
        request = self._blame.next_trial(lambda suspect: suspect not in waiting)
        if request is not None:
            self._pool.apply_to_request(Resumed(self._clock.now_s(), request))

    def pause(self, request: RequestId) -> None:
        """The client of a request has stopped reading."""
        if request in self._contents:
            self._paused.add(request)
            self._blame.adjourn(request)
        self._pool.apply_to_request(Paused(self._clock.now_s(), request))

    def resume(self, request: RequestId) -> None:
        """The client of a request reads again."""
        self._paused.discard(request)
        self._run_again(request)

    def hold(self, request: RequestId) -> None:
        """Do not let a request run, until it is let go."""
        self._held.add(request)
        self._pool.post_to_request(Paused(self._clock.now_s(), request))

    def let_go(self, request: RequestId) -> None:
        """Let a request run that was held, or came paused."""
        self._held.discard(request)
        self._run_again(request)

    def cannot_go_on(self, faults: Mapping[RequestId, str]) -> None:
        """These requests are about to end, with these reasons."""
        self._failures.update(faults)

    def fail(self, request: RequestId, detail: str) -> None:
        """End a request with a reason, wherever it is."""
        self._failures[request] = detail
        self._pool.apply_to_request(Cancelled(self._clock.now_s(), request, FinishReason.FAILED))

    def drew(self, request: RequestId) -> None:
        """The request got a token."""
        if self._blame.in_use and self._blame.drew(request):
            logger.info("request %s is cleared: it made progress", request)

    def loaded(self, model: ModelId) -> None:
        """A device has loaded the model."""
        self._blame.loaded(model)

    def removed(self, model: ModelId) -> None:
        """The model was removed: one that comes in its place is not refused."""
        self.refused.pop(model, None)
        self._blame.loaded(model)

    def shown(self, changed: PhaseChanged) -> PhaseChanged:
        """What a client is told of its request: a suspect waits, and so does one that is held; neither was
        paused by its client."""
        waits = self._blame.is_waiting(changed.request) or changed.request in self._held
        is_held_back = waits and changed.request not in self._paused
        if changed.phase is RequestPhase.PAUSED and is_held_back:
            return PhaseChanged(changed.request, RequestPhase.QUEUED)
        return changed

    def ended(self, request: RequestId, detail: str) -> str:
        """The request has ended. Returns why it was ended here, `detail` if it was not."""
        self._paused.discard(request)
        self._held.discard(request)
        self._blame.forget(request)
        return self._failures.pop(request, detail)

    def _run_again(self, request: RequestId) -> None:
        """Let a request run, unless something holds it back."""
        if not (request in self._paused or request in self._held or self._blame.is_waiting(request)):
            self._pool.post_to_request(Resumed(self._clock.now_s(), request))

    def _refuse(self, model: ModelId) -> None:
        """Load this model no more. Its requests end with the reason."""
        detail = (
            f"model {model} is not served: devices broke again and again when it was loaded; look at the "
            "server's log, then unregister it or restart the server"
        )
        logger.error("%s", detail)
        self.refused[model] = detail
        for device in self._devices.values():
            if device.instance.models[model].pinned:
                self._pool.apply(device.index, ModelWanted(self._clock.now_s(), model, pinned=False))
        for request, content in list(self._contents.items()):
            if content.submit.request.model == model:
                self.fail(request, detail)
