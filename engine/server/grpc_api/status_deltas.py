"""The pool's status for those who watch it: what has changed since the version that each of them has.

Each model, tenant and device is converted once when it changes, for all watchers together; and watchers who
have the same version get the same message.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from tokenmux.server.front.pool_status import PoolSnapshot
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.server.grpc_api.model_messages import model_message
from tokenmux.server.grpc_api.pool_messages import instance_message, summary_message, tenant_message
from tokenmux.v1 import pool_pb2

REMEMBERED_REMOVALS = 1000
"""A watcher who has not heard of more removals than these gets the whole status."""


class _Parts:
    """The models, tenants or devices of the status, each as its message, with the version of its change."""

    def __init__(self, convert: Callable[[Any, Any], Any]) -> None:
        self._convert = convert
        self._values: dict[Hashable, Any] = {}
        self._messages: dict[Hashable, tuple[Any, int]] = {}
        self._removed: deque[tuple[int, Hashable]] = deque(maxlen=REMEMBERED_REMOVALS)

    def take(self, values: Mapping[Any, Any], version: int) -> None:
        for key in [key for key in self._values if key not in values]:
            del self._values[key], self._messages[key]
            self._removed.append((version, key))
        for key, value in values.items():
            if key not in self._values or self._values[key] != value:
                self._values[key] = value
                self._messages[key] = (self._convert(key, value), version)

    def since(self, version: int) -> list[Any]:
        return [message for message, changed in self._messages.values() if changed > version]

    def named(self, key: Hashable) -> Any:
        return self._messages[key][0]

    def removed_since(self, version: int) -> list[Any]:
        """Those that are gone and have not come back."""
        gone = dict.fromkeys(key for at, key in self._removed if at > version)
        return [key for key in gone if key not in self._values]

    def knows(self, version: int) -> bool:
        """True if every removal after `version` is remembered."""
        return len(self._removed) < REMEMBERED_REMOVALS or self._removed[0][0] <= version


class StatusDeltas:
    """See the module."""

    def __init__(self) -> None:
        self.version = 0
        self._latest: PoolSnapshot | None = None
        self._models = _Parts(lambda _, model: model_message(model))
        self._tenants = _Parts(tenant_message)
        self._instances = _Parts(lambda _, device: instance_message(device))
        self._all = (self._models, self._tenants, self._instances)
        self._made: dict[tuple[int, bool], pool_pb2.WatchStatusResponse] = {}

    def take(self, status: PoolSnapshot) -> None:
        """The present status; the same object again changes nothing."""
        if status is self._latest:
            return
        self._latest = status
        self._made.clear()
        self.version += 1
        devices = () if status.node is None else status.node.devices
        self._models.take({model.name: model for model in status.models}, self.version)
        self._tenants.take(dict(sorted(status.usage.tenants.items())), self.version)
        self._instances.take({device.instance: device for device in devices}, self.version)

    def page(self, models: Iterable[ShownModel]) -> pool_pb2.PoolStatus:
        """The status with these models only."""
        page = pool_pb2.PoolStatus()
        page.CopyFrom(self.since(0, basic=True).status)
        page.models.extend(self._models.named(model.name) for model in models)
        page.tenants.extend(self._tenants.since(0))
        return page

    def since(self, version: int, *, basic: bool) -> pool_pb2.WatchStatusResponse:
        """What has changed since a version; 0 for everything. Do not change the message."""
        made = self._made.get((version, basic))
        if made is None:
            made = self._made[version, basic] = self._make(version, basic)
        return made

    def _make(self, version: int, basic: bool) -> pool_pb2.WatchStatusResponse:
        assert self._latest is not None
        whole = version == 0 or not all(parts.knows(version) for parts in self._all)
        since = 0 if whole else version
        response = pool_pb2.WatchStatusResponse(
            status=summary_message(self._latest), version=self.version, whole=whole
        )
        response.status.instances.extend(self._instances.since(since))
        if not basic:
            response.status.models.extend(self._models.since(since))
            response.status.tenants.extend(self._tenants.since(since))
        if not whole:
            response.removed_instances.extend(self._instances.removed_since(since))
            if not basic:
                response.removed_models.extend(self._models.removed_since(since))
                response.removed_tenants.extend(self._tenants.removed_since(since))
        return response
