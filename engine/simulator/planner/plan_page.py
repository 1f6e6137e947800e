"""A capacity plan as a self-contained HTML page: the answer, attainment by devices and policy, and a timeline
of each device."""

from collections.abc import Iterable
from html import escape

from tokenmux.core.span import Span
from tokenmux.simulator.planner.capacity_plan import OURS, CapacityPlan

_COLOURS = {
    "slack": "#0b6e4f",
    "unshared": "#7aa95c",
    "aegaeon": "#c8553d",
    "request-level": "#3b7ea1",
    "dedicated": "#8d8d8d",
}
_WIDTH, _HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 14, 66
_ROW = 18
_LONGEST_S = 60.0

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } svg { width: 100%; height: auto }
text { font: 12px system-ui, sans-serif; fill: #444 } h2 { margin-top: 1.6em }
"""


def html_report(plan: CapacityPlan, with_cost: bool = False, dollars_per_hour: float | None = None) -> str:
    """The whole page; it loads nothing from elsewhere."""
    parts = [
        "<h1>Capacity plan</h1>",
        _answer(plan),
        "<h2>Fewest devices by policy</h2>",
        _fewest(plan, with_cost, dollars_per_hour),
        "<h2>Tokens on time over devices</h2>",
        _attainment(plan),
        "<h2>One device less and one more</h2>",
        _around(plan),
        _relieved(plan),
        "<h2>Models on each device over time</h2>",
        _timeline(plan),
    ]
    head = f'<meta charset="utf-8"><title>Capacity plan</title><style>{_STYLE}</style>'
    body = "".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _answer(plan: CapacityPlan) -> str:
    gpu = escape(plan.hardware.gpu)
    what = f"{plan.n_models} models, {plan.n_requests} requests in {plan.duration_s:.0f} s, {gpu}"
    answer, devices = plan.answer, plan.devices(OURS)
    if answer is None or devices is None:
        return f"<p>{what}: no pool that was tried keeps {plan.goal:.1%} of tokens on time.</p>"
    keep = "device keeps" if devices == 1 else "devices keep"
    return (
        f"<p>{what}: <b>{devices} {keep}</b> {answer.summary.tokens_on_time:.2%} of tokens on time "
        f"(goal {plan.goal:.1%}). Limited by {plan.limit(OURS)}. {escape(plan.hardware.hosts_sentence())}</p>"
    )


def _fewest(plan: CapacityPlan, with_cost: bool, dollars_per_hour: float | None) -> str:
    heads = ["policy", "devices", "saved by slack", "limited by"]
    heads += ["$ per million tokens", "Wh per million tokens"] if with_cost else []
    rows = []
    for policy in plan.fewest:
        devices, saved = plan.devices(policy), plan.saved_share(policy)
        row = [
            policy,
            "more than tried" if devices is None else str(devices),
            "" if saved is None or policy == OURS else f"{saved:.0%}",
            plan.limit(policy),
        ]
        if with_cost:
            cost = plan.dollars_per_million_tokens(policy, dollars_per_hour)
            energy = plan.watt_hours_per_million_tokens(policy)
            row += ["" if value is None else f"{value:.2f}" for value in (cost, energy)]
        rows.append(row)
    return _table(heads, rows)


def _around(plan: CapacityPlan) -> str:
    heads = ["policy", "devices", "tokens on time", "requests on time", "TTFT p50", "TTFT p99", "gap p99"]
    heads += ["compute busy", "copies busy", "disk busy", "swaps"]
    heads += ["prompts shared"] if plan.shares_prefixes else []
    rows = []
    for policy in plan.fewest:
        for point in plan.around(policy):
            s = point.summary
            shares = (s.tokens_on_time, s.requests_on_time)
            times = (s.ttft_p50_s, s.ttft_p99_s, s.gap_p99_s)
            busy = (point.compute_busy, point.copy_in_busy, point.fetch_busy)
            rows.append(
                [policy, str(point.n_instances * plan.hardware.n_devices)]
                + [f"{share:.1%}" for share in shares]
                + [f"{seconds:.2f} s" for seconds in times]
                + [f"{share:.0%}" for share in busy]
                + [str(point.n_swaps)]
                + ([f"{point.prefix_hit_share:.1%}"] if plan.shares_prefixes else [])
            )
    return _table(heads, rows)


def _relieved(plan: CapacityPlan) -> str:
    relieved = {policy: shares for policy, shares in plan.relieved.items() if shares}
    if not relieved:
        return ""
    resources = list(next(iter(relieved.values())))
    rows = [[policy, *(f"{shares[name]:.1%}" for name in resources)] for policy, shares in relieved.items()]
    return "<h2>Tokens on time one device short, with twice the</h2>" + _table(["policy", *resources], rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _attainment(plan: CapacityPlan) -> str:
    per = plan.hardware.n_devices
    most = per * max((p.n_instances for p in plan.points), default=1)
    height = _HEIGHT - _TOP - _BOTTOM

    def x(n: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * n / most

    def y(share: float) -> float:
        return _TOP + height * (1 - share)

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(_LEFT, y(share), _WIDTH - _RIGHT, y(share), "#e4e4e4"))
        parts.append(_text(_LEFT - 6, y(share) + 4, f"{share:.0%}", "end"))
    parts.append(_line(_LEFT, y(plan.goal), _WIDTH - _RIGHT, y(plan.goal), "#b33", 'stroke-dasharray="5 4"'))
    for n in _ticks(most):
        parts.append(_line(x(n), y(0), x(n), y(0) + 4, "#888"))
        parts.append(_text(x(n), y(0) + 18, str(n), "middle"))
    parts.append(_text((_LEFT + _WIDTH) / 2, y(0) + 34, "devices", "middle"))
    for place, policy in enumerate(plan.fewest):
        own = [p for p in plan.points if p.policy == policy]
        colour = _COLOURS.get(policy, "#444")
        places = [(x(per * p.n_instances), y(p.summary.tokens_on_time), p) for p in own]
        corners = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in places)
        parts.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}">'
            f"<title>{policy} on {per * p.n_instances}: {p.summary.tokens_on_time:.1%}</title></circle>"
            for px, py, p in places
        ]
        at = _LEFT + 150 * place
        parts.append(_line(at, _HEIGHT - 12, at + 22, _HEIGHT - 12, colour, 'stroke-width="3"'))
        parts.append(_text(at + 28, _HEIGHT - 8, policy))
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _timeline(plan: CapacityPlan) -> str:
    """The first minute of the default policy: one row per instance, one colour per model."""
    spans = [span for span in plan.spans if span.track == "compute" and span.start_s < _LONGEST_S]
    if not spans:
        return "<p>Nothing ran.</p>"
    end_s = min(_LONGEST_S, max(span.end_s for span in spans))
    models = sorted({span.name for span in spans})
    hue = {model: int(360 * place / len(models)) for place, model in enumerate(models)}
    n_rows = 1 + max(span.instance for span in spans)
    scale = (_WIDTH - _LEFT - _RIGHT) / end_s
    parts = [_text(_LEFT - 6, _ROW * row + 13, str(row), "end") for row in range(n_rows)]
    for row, model, start_s, stop_s in _merged(spans):
        stop_s = min(stop_s, end_s)
        parts.append(
            f'<rect x="{_LEFT + start_s * scale:.2f}" y="{_ROW * row}" '
            f'width="{max(0.2, (stop_s - start_s) * scale):.2f}" '
            f'height="{_ROW - 3}" fill="hsl({hue[model]},55%,55%)"><title>{escape(model)}, '
            f"{start_s:.2f} s</title></rect>"
        )
    parts += [
        _text(_LEFT + second * scale, _ROW * n_rows + 14, f"{second} s", "middle")
        for second in _ticks(int(end_s) or 1)
    ]
    size = f"0 0 {_WIDTH} {_ROW * n_rows + 22}"
    svg = f'<svg viewBox="{size}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    return (
        f"{svg}<p>slack, the first {end_s:.0f} s: a row is an instance, a colour a model (its name "
        "appears under the pointer).</p>"
    )


def _merged(spans: Iterable[Span]) -> Iterable[tuple[int, str, float, float]]:
    """Steps of one model that follow each other within a pixel, as one."""
    pixel_s = _LONGEST_S / _WIDTH
    open_: dict[int, tuple[str, float, float]] = {}
    for span in spans:
        before = open_.get(span.instance)
        if before is not None and before[0] == span.name and span.start_s - before[2] < pixel_s:
            open_[span.instance] = (span.name, before[1], span.end_s)
            continue
        if before is not None:
            yield span.instance, *before
        open_[span.instance] = (span.name, span.start_s, span.end_s)
    for instance, last in open_.items():
        yield instance, *last


def _ticks(most: int) -> range:
    """About ten whole numbers from 0 to `most`."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if most / s <= 12)
    return range(0, most + 1, step)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
