"""Policies by name, the same names in the engine's configuration, the simulator, the planner and the benchmarks."""

from collections.abc import Sequence

from tokenmux.engine.core.errors import ConfigError
from tokenmux.engine.policy.aegaeon import PREFILL_SHARE, AegaeonDecode, AegaeonPool, AegaeonPrefill
from tokenmux.engine.policy.interface import InstancePolicy
from tokenmux.engine.policy.placement import LeastLoaded
from tokenmux.engine.policy.pool import PoolPolicy
from tokenmux.engine.policy.request_level import OneModelPerInstance, RequestLevelPolicy
from tokenmux.engine.policy.slack import SlackPolicy

POLICIES = ("slack", "aegaeon", "request-level", "dedicated")


def make_policy(name: str) -> InstancePolicy:
    """The policy of a pool of one instance. Raises ConfigError for an unknown name, or one that needs several instances."""
    if name == "aegaeon":
        raise ConfigError("policy aegaeon needs at least two instances: it separates prefill from decode")
    return make_policies(name, 1)[0][0]


def make_policies(name: str, n_instances: int) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
    """One policy for each instance, and the pool's."""
    match name:
        case "slack":
            return [SlackPolicy() for _ in range(n_instances)], LeastLoaded()
        case "request-level":
            return [RequestLevelPolicy() for _ in range(n_instances)], OneModelPerInstance(
                name, forever=False
            )
        case "dedicated":
            return [SlackPolicy() for _ in range(n_instances)], OneModelPerInstance(name, forever=True)
        case "aegaeon":
            if n_instances < 2:
                raise ConfigError(
                    "policy aegaeon needs at least two instances: it separates prefill from decode"
                )
            n_prefill = min(n_instances - 1, max(1, round(PREFILL_SHARE * n_instances)))
            prefill = [AegaeonPrefill() for _ in range(n_prefill)]
            decode = [AegaeonDecode() for _ in range(n_instances - n_prefill)]
            return [*prefill, *decode], AegaeonPool(prefill, n_instances)
    raise ConfigError(f"no policy {name}; there are {', '.join(POLICIES)}")
