"""What a person sees while the demo runs: where each model is, what waits, tokens per second."""

from collections import deque

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tokenmux.client import Model, PoolStatus, Residency
from tokenmux.core.sizes import show_size
from tokenmux.demo.load import StreamProgress

_MARKS = {
    Residency.RESIDENT: ("● device", "green"),
    Residency.LOADING: ("◐ loading", "yellow"),
    Residency.HOST: ("○ host", "dim"),
    Residency.FETCHING: ("◔ reading", "yellow"),
    Residency.DISK: ("· disk", "dim"),
    Residency.UNKNOWN: ("?", "dim"),
}
_RATE_WINDOW_S = 5.0


class View:
    """Renders the latest status. Remembers a few seconds of token counts for the rate."""

    def __init__(self, progress: StreamProgress, title: str) -> None:
        self._progress = progress
        self._title = title
        self._counts: deque[tuple[float, int]] = deque()
        self.status: PoolStatus | None = None

    def render(self, now_s: float) -> RenderableType:
        if self.status is None or not self.status.instances:
            return Text("waiting for the server ...")
        devices = self.status.instances
        done = len(self._progress.outcomes)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            "requests",
            ProgressBar(total=self._progress.n_planned, completed=done, width=30),
            f"{done} done, {self._progress.n_sent - done} in flight, of {self._progress.n_planned}",
        )
        for device in devices:
            head.add_row(
                "device memory" if len(devices) == 1 else f"device {device.id}",
                ProgressBar(
                    total=device.arena_bytes, completed=device.weight_bytes + device.kv_bytes, width=30
                ),
                f"{show_size(device.weight_bytes)} weights, {show_size(device.kv_bytes)} KV, of "
                f"{show_size(device.arena_bytes)}",
            )
        swaps = sum(model.n_swaps for model in self.status.models)
        n_steps = sum(device.n_steps for device in devices)
        head.add_row("flow", "", f"{self._rate(now_s):.0f} tokens/s, {swaps} swaps, {n_steps} steps")
        last = Text(
            " ".join(self._progress.last_text.split()), overflow="ellipsis", no_wrap=True, style="italic"
        )
        return Panel(
            Group(head, self._models({device.running_model for device in devices}), last), title=self._title
        )

    def _models(self, running: set[str]) -> Table:
        assert self.status is not None
        table = Table(expand=True, pad_edge=False, box=None)
        for column in ("model", "where", "", "queued", "running", "paged", "swaps", "tokens"):
            table.add_column(
                column, justify="left" if column in ("model", "where", "") else "right", no_wrap=True
            )
        for model in self.status.models:
            table.add_row(*_model_row(model, running))
        return table

    def _rate(self, now_s: float) -> float:
        self._counts.append((now_s, self._progress.n_tokens))
        while self._counts[0][0] < now_s - _RATE_WINDOW_S:
            self._counts.popleft()
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def _model_row(model: Model, running: set[str]) -> list[Text | str]:
    mark, style = _MARKS[model.residency]
    counts = (model.n_queued, model.n_running, model.n_paged_out, model.n_swaps, model.n_tokens)
    now = Text("▶ steps", style="bold green") if model.name in running else Text("")
    return [Text(model.name), Text(mark, style=style), now, *(str(count or "") for count in counts)]
