"""Reports in which every number is another, so that a test sees which went where."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from tokenmux.core.facts import FIRST_INSTANCE, InstanceId, ModelId
from tokenmux.core.phases import DeviceState, Residency
from tokenmux.messages.reports import (
    DeviceStatus,
    ModelStatus,
    NodeStatus,
    NodeUse,
)
from tokenmux.scheduler.metrics.counter_table import Row, Table
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE, MODEL_TABLE, SERVICE_TABLE
from tokenmux.scheduler.metrics.histogram import Durations


def node_status(
    *models: str, residency: Residency = Residency.RESIDENT, devices: tuple[DeviceStatus, ...] = ()
) -> NodeStatus:
    """A status in which every number is another, so that a test sees which went where."""
    return NodeStatus(
        at_s=1.5,
        host_cache_bytes=40_000,
        host_cache_used_bytes=5_000,
        host_kv_bytes=6_000,
        host_kv_used_bytes=700,
        n_models_used=5,
        work_s=10.0,
        model_work_s=35.0,
        devices=devices or (device_status(*models),),
        models=tuple(
            ModelStatus(
                model=ModelId(name),
                residency=residency,
                pinned=False,
                n_queued=1,
                n_running=2,
                n_paged_out=3,
                n_tokens_overdue=14,
                counts=MODEL_COUNTS,
                resident_on=(FIRST_INSTANCE,),
            )
            for name in models
        ),
    )


def device_status(
    *models: str,
    instance: InstanceId = FIRST_INSTANCE,
    state: DeviceState = DeviceState.SERVING,
    fault: str = "",
    **changes: Any,
) -> DeviceStatus:
    """A device that runs the first of these models, and holds all."""
    status = DeviceStatus(
        instance=instance,
        device="virtual GPU",
        state=state,
        arena_bytes=10_000,
        weight_bytes=2_000,
        kv_bytes=300,
        counts=INSTANCE_COUNTS,
        running_model=ModelId(models[0]) if models else None,
        loading_model=None,
        resident=tuple(map(ModelId, models)),
        n_requests=14,
        n_deaths=15,
        fault=fault,
    )
    return replace(status, **changes)


def row_of(table: Table, **values: Any) -> Row:
    """A row of a table, by the names of its counters; every one has to be named."""
    missing, unknown = set(table.names) - values.keys(), values.keys() - set(table.names)
    if missing or unknown:
        raise AssertionError(
            f"this sample row has no value for {sorted(missing)}, and one for {sorted(unknown)} that is no "
            "counter: give each counter a number that no other row has"
        )
    return tuple(values[name] for name in table.names)


INSTANCE_COUNTS = row_of(
    INSTANCE_TABLE,
    compute_busy_s=8.0,
    copy_in_busy_s=9.0,
    copy_out_busy_s=10.0,
    fetch_busy_s=11.0,
    n_steps=12,
    n_discards=13,
    paged_in_bytes=16,
    paged_out_bytes=17,
    work_s=9.5,
    model_work_s=34.0,
)

MODEL_COUNTS = row_of(
    MODEL_TABLE,
    n_swaps=4,
    swap_bytes=5,
    swap_s=6.0,
    swap_exposed_s=7.0,
    n_tokens=8,
    n_tokens_on_time=9,
    n_prompt_tokens=10,
    compute_s=11.0,
    n_swaps_first=51,
    n_swaps_again=52,
    n_swaps_operator=53,
    n_swaps_ahead=54,
)


def service(first: int) -> Row:
    """Every number another, from `first` on."""
    ttft, tpot, gaps = (
        Durations((0,) * i + (first + 20 + i,) + (0,) * (35 - i), 0.5 * i) for i in (12, 13, 14)
    )
    return row_of(
        SERVICE_TABLE,
        n_requests=first,
        n_requests_on_time=first + 1,
        n_requests_failed=first + 2,
        n_prompt_tokens=first + 3,
        n_tokens=first + 4,
        n_tokens_on_time=first + 5,
        n_prefix_hits=first + 6,
        n_cached_prompt_tokens=first + 7,
        artifact_attainment=0.5,
        gpu_s=first + 0.5,
        ttft=ttft,
        tpot=tpot,
        gaps=gaps,
    )


def node_use(*models: str, tenants: Sequence[str] = ("bank",)) -> NodeUse:
    """A report in which every number is another."""
    uses = tuple((ModelId(name), service(100 * (i + 1))) for i, name in enumerate(models))
    own = tuple((name, service(1000 * (i + 1))) for i, name in enumerate(tenants))
    return NodeUse(1.5, uses, own)
