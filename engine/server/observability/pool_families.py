"""Families about the pool: its devices, its host memory, its processes, and what the front holds."""

from collections import Counter
from collections.abc import Callable, Iterator

from tokenmux.core.errors import ErrorCode
from tokenmux.core.phases import DeviceState
from tokenmux.core.plan import Channel
from tokenmux.messages.reports import DeviceStatus, NodeStatus
from tokenmux.scheduler.metrics.counters import INSTANCE_TABLE
from tokenmux.server.observability.family import Family, MetricKind, Sample, help_of
from tokenmux.server.observability.figures import Figures

DEVICE = ("device",)


def _device(name: str, counter: str) -> Family:
    def samples(figures: Figures) -> Iterator[Sample]:
        return (((str(device),), counts[counter]) for device, counts in figures.devices.items())

    return Family(name, MetricKind.COUNTER, DEVICE, help_of(INSTANCE_TABLE, counter), samples)


def _device_now(name: str, help: str, read: Callable[[DeviceStatus], float]) -> Family:
    def samples(figures: Figures) -> Iterator[Sample]:
        return (((str(device.instance),), read(device)) for device in figures.present_devices)

    return Family(name, MetricKind.GAUGE, DEVICE, help, samples)


def _host_now(name: str, help: str, read: Callable[[NodeStatus], float]) -> Family:
    def samples(figures: Figures) -> list[Sample]:
        return [] if figures.node is None else [((), read(figures.node))]

    return Family(name, MetricKind.GAUGE, (), help, samples)


def _one(name: str, kind: MetricKind, help: str, read: Callable[[Figures], float]) -> Family:
    """A figure of the whole server."""
    return Family(name, kind, (), help, lambda figures: [((), read(figures))])


def _busy(figures: Figures) -> Iterator[Sample]:
    for device, counts in figures.devices.items():
        for channel in Channel:
            kind = channel.name.lower()
            yield (str(device), kind), counts[f"{kind}_busy_s"]


def _deaths(figures: Figures) -> Iterator[Sample]:
    return (((str(device),), n) for device, (n,) in figures.deaths.items())


def _states(figures: Figures) -> Iterator[Sample]:
    states = Counter(device.state for device in figures.present_devices)
    return (((state.value,), states[state]) for state in DeviceState)


def _refused(figures: Figures) -> Iterator[Sample]:
    return (((code.value,), figures.refused.get(code, 0)) for code in ErrorCode)


def _kv_share(device: DeviceStatus) -> float:
    room = device.arena_bytes - device.weight_bytes
    return device.kv_bytes / room if room > 0 else 0.0


DEVICE_FAMILIES = (
    Family("devices", MetricKind.GAUGE, ("state",), "Devices, by what the pool does with them.", _states),
    Family(
        "device_busy_seconds_total",
        MetricKind.COUNTER,
        (*DEVICE, "channel"),
        "Time during which a device's channel was busy.",
        _busy,
    ),
    _device("device_steps_total", "n_steps"),
    _device("device_work_seconds_total", "work_s"),
    _device("device_model_work_seconds_total", "model_work_s"),
    _device("paged_in_bytes_total", "paged_in_bytes"),
    _device("paged_out_bytes_total", "paged_out_bytes"),
    _device("kv_discards_total", "n_discards"),
    Family(
        "device_recoveries_total",
        MetricKind.COUNTER,
        DEVICE,
        "Times that a device's process broke and was replaced.",
        _deaths,
    ),
    _device_now(
        "kv_cache_usage_perc",
        "KV cache, as a share of the memory that weights do not take: 1 is all of it.",
        _kv_share,
    ),
    _device_now("device_arena_bytes", "Device memory for weights and KV cache.", lambda d: d.arena_bytes),
    _device_now("device_weight_bytes", "Device memory that weights hold.", lambda d: d.weight_bytes),
    _device_now("device_kv_bytes", "Device memory that KV cache holds.", lambda d: d.kv_bytes),
    _device_now("device_requests", "Live requests placed on a device.", lambda d: d.n_requests),
)

POOL_FAMILIES = (
    _one(
        "num_requests",
        MetricKind.GAUGE,
        "Requests that hold a place: being admitted, or live.",
        lambda figures: figures.status.n_requests,
    ),
    _one(
        "max_num_requests",
        MetricKind.GAUGE,
        "Places for requests: further ones are refused.",
        lambda figures: figures.status.max_requests,
    ),
    Family(
        "requests_refused_total",
        MetricKind.COUNTER,
        ("reason",),
        "Calls that were refused: for their key, a limit, an unknown model, a full queue.",
        _refused,
    ),
    _one(
        "node_up", MetricKind.GAUGE, "1 if there is a node that has reported.", lambda f: f.node is not None
    ),
    _one(
        "node_recoveries_total",
        MetricKind.COUNTER,
        "Times that the node broke and was replaced.",
        lambda figures: figures.status.n_restarts,
    ),
    _one(
        "work_seconds_total",
        MetricKind.COUNTER,
        "Time during which any model had unfinished requests.",
        lambda figures: figures.work_s,
    ),
    _one(
        "model_work_seconds_total",
        MetricKind.COUNTER,
        "Time during which models had unfinished requests, once for each.",
        lambda figures: figures.model_work_s,
    ),
    _one(
        "devices_saved",
        MetricKind.GAUGE,
        "Estimate since the node began: against a device for each model while it has requests.",
        lambda figures: figures.status.devices_saved,
    ),
    _one(
        "devices_saved_dedicated",
        MetricKind.GAUGE,
        "Devices saved against one for each model requested within the last hour.",
        lambda figures: figures.status.devices_saved_dedicated,
    ),
    _host_now("host_cache_bytes", "Host memory for weights.", lambda node: node.host_cache_bytes),
    _host_now(
        "host_cache_used_bytes", "Host memory that weights hold.", lambda node: node.host_cache_used_bytes
    ),
    _host_now(
        "host_kv_bytes", "Host memory for KV cache that leaves devices.", lambda node: node.host_kv_bytes
    ),
    _host_now("host_kv_used_bytes", "Host memory that KV cache holds.", lambda node: node.host_kv_used_bytes),
    Family(
        "build_info",
        MetricKind.GAUGE,
        ("version",),
        "1, with the version of the server.",
        lambda figures: [((figures.status.version,), 1)],
    ),
)
