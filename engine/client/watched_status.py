"""Puts the changes that WatchStatus sends together again."""

from tokenmux.client import pool_values
from tokenmux.client.operator_values import InstanceStatus, Model, PoolStatus, Tenant
from tokenmux.v1 import pool_pb2


class WatchedStatus:
    """The status so far. Each part is converted once for each of its changes."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._tenants: dict[str, Tenant] = {}
        self._instances: dict[int, InstanceStatus] = {}

    def take(self, response: pool_pb2.WatchStatusResponse) -> PoolStatus:
        """The status after this message."""
        if response.whole:
            self._models, self._tenants, self._instances = {}, {}, {}
        for name in response.removed_models:
            self._models.pop(name, None)
        for name in response.removed_tenants:
            self._tenants.pop(name, None)
        for number in response.removed_instances:
            self._instances.pop(number, None)
        status = response.status
        self._models.update((each.name, pool_values.model(each)) for each in status.models)
        self._tenants.update((each.name, pool_values.tenant(each)) for each in status.tenants)
        self._instances.update((each.id, pool_values.instance(each)) for each in status.instances)
        return pool_values.pool_status_of(
            status,
            tuple(self._models[name] for name in sorted(self._models)),
            tuple(self._tenants[name] for name in sorted(self._tenants)),
            tuple(self._instances[number] for number in sorted(self._instances)),
        )
