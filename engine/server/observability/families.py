"""All families that Prometheus is shown. Names are vLLM's stems under our prefix, if vLLM has the figure;
what a node counts has the help of its counter. docs/prometheus.md lists them for operators, and a test
compares the two.
"""

from tokenmux.server.observability.family import Family
from tokenmux.server.observability.model_families import (
    REQUEST_FAMILIES,
    TENANT_FAMILIES,
    TOKEN_FAMILIES,
    WEIGHT_FAMILIES,
)
from tokenmux.server.observability.pool_families import DEVICE_FAMILIES, POOL_FAMILIES

FAMILY_GROUPS: dict[str, tuple[Family, ...]] = {
    "Requests, by model": REQUEST_FAMILIES,
    "Tokens, by model": TOKEN_FAMILIES,
    "Weights and device time, by model": WEIGHT_FAMILIES,
    "Tenants": TENANT_FAMILIES,
    "Devices": DEVICE_FAMILIES,
    "The pool": POOL_FAMILIES,
}
ALL_FAMILIES = tuple(family for group in FAMILY_GROUPS.values() for family in group)

NOT_SHOWN = {
    "artifact_attainment": "a mean over all time, from which no other time's can be derived",
    "n_requests_failed": "`request_success_total` has it by reason",
    "n_swaps": "the sum of `swaps_total`",
}
"""Counters of `tokenmux.scheduler.metrics.counters` that have no family, and why."""
