"""The devices of a pool and its host memory for a terminal."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tokenmux.cli.safe_text import shown_name
from tokenmux.client import DeviceState, InstanceStatus, PoolStatus
from tokenmux.core.sizes import show_size

_COLOURS = {
    DeviceState.STARTING: "yellow",
    DeviceState.SERVING: "green",
    DeviceState.DRAINING: "yellow",
    DeviceState.DRAINED: "dim",
    DeviceState.OUT: "bold red",
}
_BAR_WIDTH = 30
_CHANNELS = (
    ("compute", "compute_busy_s"),
    ("copy in", "copy_in_busy_s"),
    ("copy out", "copy_out_busy_s"),
    ("fetch", "fetch_busy_s"),
)


def devices_view(now: PoolStatus, before: PoolStatus | None = None) -> Iterator[RenderableType]:
    """The devices, then the host memory that they share. One device is shown at length, several as a table
    with what each of them is and holds below."""
    memory = Table.grid(padding=(0, 2))
    if len(now.instances) == 1:
        _add_device(memory, now.instances[0], now, before)
    for what, part, whole in (
        ("host cache", now.host_cache_used_bytes, now.host_cache_bytes),
        ("host KV", now.host_kv_used_bytes, now.host_kv_bytes),
    ):
        memory.add_row(what, _bar(part, whole), f"{show_size(part)} of {show_size(whole)}")
    if len(now.instances) > 1:
        yield _devices_table(now, before)
        yield from map(_about, now.instances)
        yield Text()
    yield memory
    for device in now.instances:
        if device.fault:
            yield shown_name(f"device {device.id} is {device.state.value}: {device.fault}", "red")
    yield Text()


def _add_device(grid: Table, device: InstanceStatus, now: PoolStatus, before: PoolStatus | None) -> None:
    """Rows for a single device."""
    doing = [f"running {device.running_model}" if device.running_model else "idle"]
    if device.loading_model:
        doing.append(f"loading {device.loading_model}")
    if device.state is not DeviceState.SERVING:
        doing.insert(0, device.state.value)
    if device.n_deaths:
        doing.append(f"{device.n_deaths} deaths")
    grid.add_row(f"device {device.id}", shown_name(device.device, "bold"), shown_name(", ".join(doing)))
    held = f"{show_size(device.weight_bytes)} weights, {show_size(device.kv_bytes)} KV"
    used_bytes = device.weight_bytes + device.kv_bytes
    grid.add_row("arena", _bar(used_bytes, device.arena_bytes), f"{held}, of {show_size(device.arena_bytes)}")
    shares = {name: _share(device, field, now, before) for name, field in _CHANNELS}
    busy = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share is not None)
    if busy:
        grid.add_row("busy", "", busy)


def _devices_table(now: PoolStatus, before: PoolStatus | None) -> Table:
    """One row per device, in 80 columns."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("state", no_wrap=True, min_width=max(len(state.value) for state in DeviceState))
    table.add_column("running", overflow="ellipsis", no_wrap=True)
    for column in ("used", "of", "requests", "busy", "deaths"):
        table.add_column(column, justify="right", no_wrap=True)
    for device in now.instances:
        share = _share(device, "compute_busy_s", now, before)
        table.add_row(
            str(device.id),
            Text(device.state.value, style=_COLOURS.get(device.state, "")),
            shown_name(device.running_model, "bold"),
            show_size(device.weight_bytes + device.kv_bytes),
            show_size(device.arena_bytes),
            str(device.n_requests or ""),
            "" if share is None else f"{share:.0%}",
            str(device.n_deaths or ""),
        )
    return table


def _about(device: InstanceStatus) -> Text:
    """What a device is, and what it holds and loads, as a line."""
    held = (f"{name} (pinned)" if name in device.pinned_models else name for name in device.resident_models)
    parts = [device.device]
    if device.resident_models:
        parts.append(f"holds {', '.join(held)}")
    if device.loading_model:
        parts.append(f"loads {device.loading_model}")
    return shown_name(f"{device.id} {'; '.join(parts)}", "dim")


def _share(device: InstanceStatus, field: str, now: PoolStatus, before: PoolStatus | None) -> float | None:
    """The share of the time since `before`, or else since the start, in which a channel was busy. None if
    that is not known."""
    earlier = {} if before is None else {other.id: other for other in before.instances}
    if before is not None and device.id in earlier:
        seconds, since_s = now.at_s - before.at_s, getattr(earlier[device.id], field)
    elif now.n_restarts or device.n_deaths or device.id:  # it may have started later
        return None
    else:
        seconds, since_s = now.uptime_s, 0.0
    return (getattr(device, field) - since_s) / seconds if seconds > 0 else None


def _bar(part: float, whole: float) -> ProgressBar:
    return ProgressBar(total=max(whole, 1), completed=part, width=_BAR_WIDTH)
