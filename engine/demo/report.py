"""The demo's closing report: per model and for the pool, as tables for people and as one JSON document."""

from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from tokenmux.client import Model, PoolStatus
from tokenmux.core.sizes import show_size
from tokenmux.demo.load import RequestOutcome
from tokenmux.demo.service_level import Calibration
from tokenmux.scheduler.metrics.summary import percentile


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model's figures; times in seconds. None if a model had too few tokens to tell."""

    model: str
    n_requests: int
    n_failed: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_s: float | None
    tokens_on_time: float | None
    n_swaps: int


@dataclass(frozen=True, slots=True)
class PoolReport:
    """The pool's figures. `swap_over_copy` compares activations under load with an idle copy of the same
    bytes."""

    ttft_s: float
    tpot_s: float
    slowest_step_s: float
    n_requests: int
    n_failed: int
    n_tokens: int
    tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tokens_on_time: float | None
    requests_on_time: float | None
    n_swaps: int
    swap_bytes: int
    swap_s: float
    swap_over_copy: float | None
    swap_exposed_s: float
    n_discards: int
    compute_busy_share: float
    model_bytes: int
    device_bytes: int
    devices_used: int
    devices_one_per_model: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The document that `--json` prints."""

    pool: PoolReport
    models: tuple[ModelReport, ...]
    question: str
    answer: str

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def make_report(
    outcomes: list[RequestOutcome],
    before: PoolStatus,
    after: PoolStatus,
    calibration: Calibration,
    copy_bytes_per_s: float,
    question: str,
    answer: str,
) -> DemoReport:
    """Join what the clients measured with what the server counted between two statuses."""
    earlier = {model.name: model for model in before.models}
    models = tuple(_model_report(model, earlier[model.name], outcomes) for model in after.models)
    pool = _pool_report(outcomes, before, after, calibration, copy_bytes_per_s)
    return DemoReport(pool, models, question, answer)


def _model_report(model: Model, earlier: Model, outcomes: list[RequestOutcome]) -> ModelReport:
    own = [outcome for outcome in outcomes if outcome.planned.model == model.name]
    ttft = [outcome.finish.ttft_s for outcome in own if outcome.finish]
    return ModelReport(
        model=model.name,
        n_requests=len(own),
        n_failed=sum(1 for outcome in own if outcome.finish is None),
        ttft_p50_s=_percentile(ttft, 0.5),
        ttft_p99_s=_percentile(ttft, 0.99),
        tpot_s=_mean_tpot_s(own),
        tokens_on_time=_on_time(own),
        n_swaps=model.n_swaps - earlier.n_swaps,
    )


def _pool_report(
    outcomes: list[RequestOutcome],
    before: PoolStatus,
    after: PoolStatus,
    calibration: Calibration,
    copy_bytes_per_s: float,
) -> PoolReport:
    finished = [outcome.finish for outcome in outcomes if outcome.finish]
    ttft = [finish.ttft_s for finish in finished]
    n_tokens = sum(finish.n_completion_tokens for finish in finished)
    duration_s = after.at_s - before.at_s
    swap_bytes = sum(model.swap_bytes for model in after.models) - sum(m.swap_bytes for m in before.models)
    swap_s = sum(model.swap_s for model in after.models) - sum(m.swap_s for m in before.models)
    exposed_s = sum(m.swap_exposed_s for m in after.models) - sum(m.swap_exposed_s for m in before.models)
    whole = sum(1 for finish in finished if finish.n_tokens_on_time == finish.n_completion_tokens)
    return PoolReport(
        ttft_s=calibration.ttft_s,
        tpot_s=calibration.tpot_s,
        slowest_step_s=calibration.slowest_step_s,
        n_requests=len(outcomes),
        n_failed=len(outcomes) - len(finished),
        n_tokens=n_tokens,
        tokens_per_s=n_tokens / duration_s,
        ttft_p50_s=_percentile(ttft, 0.5),
        ttft_p99_s=_percentile(ttft, 0.99),
        tokens_on_time=_on_time(outcomes),
        requests_on_time=whole / len(outcomes) if outcomes else None,
        n_swaps=sum(model.n_swaps for model in after.models) - sum(m.n_swaps for m in before.models),
        swap_bytes=swap_bytes,
        swap_s=swap_s,
        swap_over_copy=swap_s / (swap_bytes / copy_bytes_per_s) if swap_bytes else None,
        swap_exposed_s=exposed_s,
        n_discards=sum(device.n_discards for device in after.instances)
        - sum(device.n_discards for device in before.instances),
        compute_busy_share=(_busy_s(after) - _busy_s(before)) / duration_s / len(after.instances),
        model_bytes=sum(model.weight_bytes for model in after.models),
        device_bytes=sum(device.arena_bytes for device in after.instances),
        devices_used=len(after.instances),
        devices_one_per_model=len(after.models),
        duration_s=duration_s,
    )


def print_report(report: DemoReport, console: Console) -> None:
    pool = report.pool
    table = Table(title="Per model", title_justify="left")
    for column in ("model", "requests", "TTFT p50", "p99", "TPOT", "on time", "swaps"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for model in report.models:
        table.add_row(
            model.model,
            f"{model.n_requests}" + (f" ({model.n_failed} failed)" if model.n_failed else ""),
            _seconds(model.ttft_p50_s),
            _seconds(model.ttft_p99_s),
            _seconds(model.tpot_s),
            _share(model.tokens_on_time),
            str(model.n_swaps),
        )
    console.print(table)
    lines = {
        "service level": f"first token within {pool.ttft_s:.2f} s, then one each {1e3 * pool.tpot_s:.0f} ms "
        f"(a decode step alone takes {1e3 * pool.slowest_step_s:.1f} ms here)",
        "requests": f"{pool.n_requests}, {pool.n_failed} failed, {_share(pool.requests_on_time)} with every "
        "token on time",
        "tokens": f"{pool.n_tokens} at {pool.tokens_per_s:.0f} per second, {_share(pool.tokens_on_time)} on "
        "time",
        "first token": f"p50 {_seconds(pool.ttft_p50_s)}, p99 {_seconds(pool.ttft_p99_s)}",
        "swaps": f"{pool.n_swaps}, {show_size(pool.swap_bytes)} in {pool.swap_s:.2f} s: "
        + (f"{pool.swap_over_copy:.2f}x an idle copy of the same bytes; " if pool.swap_over_copy else "")
        + f"{pool.swap_exposed_s:.2f} s of it not hidden behind steps",
        "memory": f"{show_size(pool.device_bytes)} on {_devices(pool.devices_used)} for "
        f"{show_size(pool.model_bytes)} of models; computing {_share(pool.compute_busy_share)} of the time",
        "devices": f"{pool.devices_used} used; one model per device would need {pool.devices_one_per_model}",
    }
    summary = Table.grid(padding=(0, 2))
    for name, line in lines.items():
        summary.add_row(f"[bold]{name}[/bold]", line)
    console.print(summary)


def _busy_s(status: PoolStatus) -> float:
    return sum(device.compute_busy_s for device in status.instances)


def _devices(n: int) -> str:
    return f"{n} device{'s' if n > 1 else ''}"


def _on_time(outcomes: list[RequestOutcome]) -> float | None:
    """Share of tokens on time. A failed request counts all the tokens it asked for as late."""
    due = sum(o.finish.n_completion_tokens if o.finish else o.planned.n_tokens for o in outcomes)
    return sum(o.finish.n_tokens_on_time for o in outcomes if o.finish) / due if due else None


def _mean_tpot_s(outcomes: list[RequestOutcome]) -> float | None:
    timed = [o.finish for o in outcomes if o.finish and o.finish.n_completion_tokens > 1]
    if not timed:
        return None
    return sum((f.total_s - f.ttft_s) / (f.n_completion_tokens - 1) for f in timed) / len(timed)


def _percentile(seconds: list[float], share: float) -> float | None:
    return percentile(sorted(seconds), share) if seconds else None


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1e3 * value:.0f} ms" if value < 1.0 else f"{value:.2f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
