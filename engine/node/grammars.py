"""Has executors compile the grammars of requests, and holds back requests whose grammar is being compiled.

    a request enters a device ──▶ AddGrammar ──▶ held: it cannot run, others go on
                                  GrammarReady ──▶ let go, or ended with the reason

An executor keeps a grammar while requests on its device use it, and the last few that none uses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tokenmux.core.facts import InstanceId, ModelId
from tokenmux.core.request import RequestId
from tokenmux.messages.completions import GrammarReady
from tokenmux.messages.launches import AddGrammar, RemoveGrammar
from tokenmux.node.node_device import NodeDevice
from tokenmux.node.request_content import Content

MOST_IDLE = 32
"""Grammars without a request that an executor keeps for the next one."""

_Key = tuple[ModelId, str]


@dataclass(slots=True)
class _Known:
    """A grammar that an executor was told of."""

    added: AddGrammar
    is_ready: bool = False
    requests: set[RequestId] = field(default_factory=set)


class Grammars:
    """What executors know of grammars; see the module. `hold`, `let_go` and `fail` requests: a request with a
    grammar comes paused, and is let go here."""

    def __init__(
        self,
        contents: Mapping[RequestId, Content],
        hold: Callable[[RequestId], None],
        let_go: Callable[[RequestId], None],
        fail: Callable[[RequestId, str], None],
    ) -> None:
        self._contents = contents
        self._hold = hold
        self._let_go = let_go
        self._fail = fail
        self._known: dict[InstanceId, dict[_Key, _Known]] = {}
        """By device; those used last at the end."""
        self._place: dict[RequestId, InstanceId] = {}
        """The device of each request that has a grammar."""

    def entered(self, device: NodeDevice, request: RequestId) -> None:
        """A request is on this device from now on."""
        submit = self._contents[request].submit
        if submit.grammar is None:
            return
        self._left(request)
        self._place[request] = device.index
        here = self._known.setdefault(device.index, {})
        key = (submit.request.model, submit.grammar.id)
        known = here.pop(key, None)
        if known is None:
            known = _Known(AddGrammar(submit.request.model, submit.grammar))
            device.say(known.added)
        here[key] = known
        known.requests.add(request)
        (self._let_go if known.is_ready else self._hold)(request)
        self._forget_idle(device, here)

    def ended(self, request: RequestId) -> None:
        self._left(request)

    def ready(self, device: NodeDevice, report: GrammarReady) -> None:
        """An executor has compiled a grammar, or says why it cannot be used."""
        here, key = self._known.get(device.index, {}), (report.model, report.grammar_id)
        known = here.get(key)
        if known is None:
            return
        known.is_ready = not report.error
        if report.error:
            del here[key]
        for request in sorted(known.requests):
            if report.error:
                self._fail(request, f"its output cannot be held to what it asks for: {report.error}")
            else:
                self._let_go(request)

    def started(self, device: NodeDevice) -> None:
        """A device has a new executor, which knows nothing."""
        for known in self._known.get(device.index, {}).values():
            known.is_ready = False
            device.say(known.added)

    def lost(self, index: InstanceId) -> None:
        """The executor of a device has ended. Its requests enter a device again."""
        self._known.pop(index, None)

    def model_removed(self, model: ModelId) -> None:
        """Executors forget the model, and its grammars with it."""
        for here in self._known.values():
            for key in [key for key in here if key[0] == model]:
                del here[key]

    def knows(self, model: ModelId) -> bool:
        """True if an executor knows a grammar of the model."""
        return any(key[0] == model for here in self._known.values() for key in here)

    def _left(self, request: RequestId) -> None:
        place = self._place.pop(request, None)
        known = self._known.get(place, {}).values() if place is not None else ()
        for one in known:
            one.requests.discard(request)

    def _forget_idle(self, device: NodeDevice, here: dict[_Key, _Known]) -> None:
        idle = [key for key, known in here.items() if not known.requests]
        for key in idle[: max(0, len(idle) - MOST_IDLE)]:
            del here[key]
            device.say(RemoveGrammar(*key))
