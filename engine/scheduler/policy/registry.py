"""Policies by name: the same names in the engine's configuration, the simulator, the planner and the
benchmarks."""

from collections.abc import Mapping, Sequence

from tokenmux.core.errors import ConfigError
from tokenmux.core.request import RequestId
from tokenmux.scheduler.policy.baselines.aegaeon import (
    PREFILL_SHARE,
    AegaeonDecode,
    AegaeonPool,
    AegaeonPrefill,
)
from tokenmux.scheduler.policy.baselines.request_level import OneModelPerInstance, RequestLevelPolicy
from tokenmux.scheduler.policy.instance_policy import InstancePolicy
from tokenmux.scheduler.policy.pool.placement import LeastLoaded
from tokenmux.scheduler.policy.pool.pool_policy import PoolPolicy
from tokenmux.scheduler.policy.slack import SlackPolicy

POLICIES = ("slack", "aegaeon", "request-level", "dedicated", "oracle")
SERVED = ("slack", "request-level", "aegaeon")
"""Policies that a running server offers: those that work on a single instance."""


def make_policy(name: str) -> InstancePolicy:
    """The policy of a running server, which has one instance. Raises ConfigError, with the reason, for a
    policy that servers do not offer."""
    match name:
        case "dedicated":
            raise ConfigError(
                "policy dedicated gives every model an instance of its own, and a server has one: "
                f"use {' or '.join(SERVED)}"
            )
        case "oracle":
            raise ConfigError(
                "policy oracle knows how long every answer will be, which only a simulation can tell it: "
                f"use {' or '.join(SERVED)}"
            )
        case _ if name not in SERVED:
            raise ConfigError(f"no policy {name}; a server offers {', '.join(SERVED)}")
    return make_policies(name, 1)[0][0]


def make_policies(
    name: str, n_instances: int, lengths: Mapping[RequestId, int] | None = None
) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
    """One policy for each instance, and the pool's. `lengths` gives the tokens that each request will
    draw, for `oracle`."""
    match name:
        case "slack":
            return [SlackPolicy() for _ in range(n_instances)], LeastLoaded()
        case "oracle" if lengths is not None:
            return [SlackPolicy() for _ in range(n_instances)], LeastLoaded(lengths=lengths)
        case "request-level":
            return [RequestLevelPolicy() for _ in range(n_instances)], OneModelPerInstance(
                name, forever=False
            )
        case "dedicated":
            return [SlackPolicy() for _ in range(n_instances)], OneModelPerInstance(name, forever=True)
        case "aegaeon" if n_instances == 1:
            return [AegaeonDecode()], LeastLoaded()
        case "aegaeon":
            return aegaeon(n_instances)
        case "oracle":
            raise ConfigError(
                "policy oracle must be told how long answers will be, which only a simulation knows"
            )
    raise ConfigError(f"no policy {name}; there are {', '.join(POLICIES)}")


def aegaeon(
    n_instances: int, prefill_share: float = PREFILL_SHARE
) -> tuple[Sequence[InstancePolicy], PoolPolicy]:
    """The paper's scheduler on two instances or more, that share of them for prefill."""
    n_prefill = min(n_instances - 1, max(1, round(prefill_share * n_instances)))
    prefill = [AegaeonPrefill() for _ in range(n_prefill)]
    decode = [AegaeonDecode() for _ in range(n_instances - n_prefill)]
    return [*prefill, *decode], AegaeonPool(prefill, n_instances)
