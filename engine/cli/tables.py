"""Models and the pool as tables for a terminal, and the same values as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tokenmux.cli.device_tables import devices_view
from tokenmux.cli.safe_text import safe, shown_name
from tokenmux.client import Model, PoolStatus, Residency
from tokenmux.core.sizes import show_size

_COLOURS = {
    Residency.RESIDENT: "bold green",
    Residency.LOADING: "yellow",
    Residency.HOST: "cyan",
    Residency.FETCHING: "blue",
}
_NAME_WIDTH = 20
_TENANT_WIDTH = 8
"""Longer names of models and tenants may be folded."""
_LEFT_OUT_FIRST = ("hits", "context", "per swap", "weights", "cached", "tokens", "swaps", "on", "away")
"""Columns of models that are left out until a line has room for the others, in this order."""
_MOST_TENANTS = 12


def as_json(value: Any) -> str:
    """A dataclass, or a tuple of them, as one line of JSON."""
    plain = [asdict(item) for item in value] if isinstance(value, tuple) else asdict(value)
    return json.dumps(plain, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")


@dataclass(frozen=True, slots=True)
class ModelsView:
    """One row per model, then the reason of each that is refused. `rates`: tokens per second by model name.
    The column "on" has the devices that hold its weights, "cached" the tokens of prompts that the prefix
    cache saved, if it saved any. If lines are short, the columns that are needed least are left out: a state
    is never cut, and a name is folded."""

    models: tuple[Model, ...]
    rates: dict[str, float] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns: dict[str, Callable[[Model], str]] = {
            "weights": lambda model: show_size(model.weight_bytes),
            "context": lambda model: str(model.max_context),
            "on": lambda model: ",".join(map(str, model.instances)),
            "run": lambda model: _count(model.n_running),
            "queue": lambda model: _count(model.n_queued),
            "away": lambda model: _count(model.n_paged_out),
            "tokens": lambda model: _count(model.n_tokens),
            "on time": _on_time,
            "swaps": lambda model: _count(model.n_swaps),
            "per swap": lambda model: (
                f"{1000 * model.swap_s / model.n_swaps:.0f} ms" if model.n_swaps else ""
            ),
        }
        if any(model.service.n_prefix_hits for model in self.models):
            columns["hits"] = lambda model: _count(model.service.n_prefix_hits)
            columns["cached"] = lambda model: _count(model.service.n_cached_prompt_tokens)
        rates = self.rates
        if rates is not None:
            columns["tokens/s"] = lambda model: f"{rate:.1f}" if (rate := rates.get(model.name)) else ""
        if all(model.instances in ((), (0,)) for model in self.models):
            del columns["on"]  # there is one device
        states = [_state(model) for model in self.models]
        cells = {name: [shown(model) for model in self.models] for name, shown in columns.items()}
        name_width = min(
            _NAME_WIDTH, max(len(name) for name in ("model", *(model.name for model in self.models)))
        )
        state_width = max((len(state) for state in states), default=0)
        cells = _fitting(cells, options.max_width - name_width - state_width - 2)
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("model", overflow="fold", min_width=name_width)
        table.add_column("state", no_wrap=True, min_width=state_width)
        for name in cells:
            table.add_column(name, justify="right", no_wrap=True)
        for model, state, *row in zip(self.models, states, *cells.values(), strict=True):
            table.add_row(shown_name(model.name, "bold" if model.n_running else ""), state, *row)
        yield table
        for model in self.models:
            if model.refusal:
                yield shown_name(f"{model.name} is refused: {model.refusal}", "red")


def _on_time(model: Model) -> str:
    """Share of the tokens due so far that were on time: what is overdue counts before it is drawn."""
    n_due = model.n_tokens + model.n_tokens_overdue
    return f"{model.n_tokens_on_time / n_due:.0%}" if n_due else ""


def _fitting(columns: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """The columns of cells for which a line has room, two spaces before each; those of `_LEFT_OUT_FIRST` go
    first."""
    kept = dict(columns)
    widths = {name: 2 + max(len(cell) for cell in (name, *cells)) for name, cells in columns.items()}
    for name in _LEFT_OUT_FIRST:
        if sum(widths[one] for one in kept) <= width:
            break
        kept.pop(name, None)
    return kept


def pool_view(now: PoolStatus, before: PoolStatus | None = None) -> RenderableType:
    """The whole pool. With an earlier status, also the rates since then."""
    restarts = f", {now.n_restarts} restarts" if now.n_restarts else ""
    title = Text.assemble(
        ("tokenmux ", "bold"),
        f"{safe(now.version)}, up {_duration(now.uptime_s)}, {now.n_requests} of {now.max_requests} "
        f"requests{restarts}",
    )
    if not now.instances:
        devices: list[RenderableType] = [Text("no node is running", style="red")]
    else:
        devices = list(devices_view(now, before))
    parts: list[RenderableType] = [title, *devices, ModelsView(now.models, _rates(now, before))]
    if now.tenants:
        parts += [Text(), tenants_table(now)]
    if now.work_s:
        parts += [Text(), saved_line(now)]
    return Group(*parts)


def tenants_table(now: PoolStatus) -> Table:
    """Usage by tenant since the node started, largest first."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("tenant", overflow="fold", min_width=_TENANT_WIDTH)
    for column in ("requests", "all on time", "tokens", "on time", "TTFT p99", "gap p99", "GPU s"):
        table.add_column(column, justify="right")
    uses_cache = any(tenant.service.n_prefix_hits for tenant in now.tenants)
    for column in ("hits", "cached") if uses_cache else ():
        table.add_column(column, justify="right")
    ordered = sorted(now.tenants, key=lambda tenant: -tenant.service.gpu_s)
    for tenant in ordered[:_MOST_TENANTS]:
        own = tenant.service
        table.add_row(
            shown_name(tenant.name),
            _count(own.n_requests),
            f"{own.n_requests_on_time / own.n_requests:.0%}" if own.n_requests else "",
            _count(own.n_tokens),
            f"{own.n_tokens_on_time / own.n_tokens:.0%}" if own.n_tokens else "",
            *(
                _at_most(durations.percentile(0.99, now.duration_bounds_s))
                for durations in (own.ttft, own.gaps)
            ),
            f"{own.gpu_s:.1f}",
            *((_count(own.n_prefix_hits), _count(own.n_cached_prompt_tokens)) if uses_cache else ()),
        )
    if len(ordered) > _MOST_TENANTS:
        table.add_row(f"and {len(ordered) - _MOST_TENANTS} more", style="dim")
    return table


def saved_line(now: PoolStatus) -> Text:
    """How many devices the pool saves, what swaps cost, and the goodput."""
    n_devices = len(now.instances)
    held = f"{n_devices} device{'s' if n_devices > 1 else ''}"
    exposed_s = sum(model.swap_exposed_s for model in now.models)
    goodput = sum(model.service.n_tokens_on_time for model in now.models) / now.work_s
    reasons = ", ".join(
        f"{n} {reason}"
        for reason in ("first", "again", "operator", "ahead")
        if (n := sum(getattr(model, f"n_swaps_{reason}") for model in now.models))
    )
    return Text.assemble(
        ("saved ", "dim"),
        # Adding 0 makes 0 of -0.
        f"{round(now.devices_saved, 1) + 0:.1f} devices on average while there was work, "
        "against one per model with requests "
        f"({held} held); {now.devices_saved_dedicated:.0f} against one per model used in the last hour\n",
        ("swaps ", "dim"),
        f"{reasons or 'none'}; {_at_least(exposed_s)} of them with nothing else running\n",
        ("goodput ", "dim"),
        f"{goodput:.1f} tokens/s on time while there was work",
    )


def _at_least(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _at_most(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"≤ {seconds:g} s" if seconds >= 1 else f"≤ {1000 * seconds:g} ms"


def _rates(now: PoolStatus, before: PoolStatus | None) -> dict[str, float] | None:
    if before is None or not now.instances or not before.instances:
        return None
    seconds = now.at_s - before.at_s
    earlier = {model.name: model.n_tokens for model in before.models}
    return {
        model.name: (model.n_tokens - earlier.get(model.name, 0)) / seconds if seconds > 0 else 0.0
        for model in now.models
    }


def _state(model: Model) -> Text:
    if model.refusal:
        return Text("refused", style="red")
    pinned = " (pinned)" if model.pinned else ""
    return Text(model.residency.value + pinned, style=_COLOURS.get(model.residency, "dim"))


def _count(n: int) -> str:
    return str(n) if n else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
