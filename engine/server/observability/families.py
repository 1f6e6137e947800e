"""All families that Prometheus is shown. Names are vLLM's stems under our prefix, if vLLM has the figure;
what a node counts has the help of its counter. docs/prometheus.md lists them for operators, and a test
compares the two.
"""

from tokenmux.server.observability.family import Family
from tokenmux.server.observability.model_families import REQUESTS, TENANTS, TOKENS, WEIGHTS
from tokenmux.server.observability.pool_families import DEVICES, POOL

GROUPS: dict[str, tuple[Family, ...]] = {
    "Requests, by model": REQUESTS,
    "Tokens, by model": TOKENS,
    "Weights and device time, by model": WEIGHTS,
    "Tenants": TENANTS,
    "Devices": DEVICES,
    "The pool": POOL,
}
FAMILIES = tuple(family for group in GROUPS.values() for family in group)

NOT_SHOWN = {
    "artifact_attainment": "a mean over all time, from which no other time's can be derived",
    "n_requests_failed": "`request_success_total` has it by reason",
    "n_swaps": "the sum of `swaps_total`",
}
"""Counters of `tokenmux.scheduler.metrics.counters` that have no family, and why."""
