"""A capacity plan as a self-contained HTML page: the answer, attainment over devices by policy, and who held which device."""

from html import escape

from tokenmux.engine.sim.planner import CapacityPlan, Point

_COLOURS = {"slack": "#0b6e4f", "aegaeon": "#c8553d", "request-level": "#588b8b", "dedicated": "#8d8d8d"}
_WIDTH, _HEIGHT, _MARGIN = 760, 300, 46


def html_report(plan: CapacityPlan) -> str:
    """The whole page; it loads nothing from elsewhere."""
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Capacity plan</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }}
td:first-child, th:first-child {{ text-align: left }} svg {{ width: 100%; height: auto }} text {{ font-size: 12px }}
</style></head><body><h1>Capacity plan</h1>{_answer(plan)}
<h2>Fewest devices by policy</h2>{_table(plan)}
<h2>Tokens on time over devices</h2>{_attainment(plan)}
<h2>Who held which device</h2>{_timeline(plan)}</body></html>
"""


def _answer(plan: CapacityPlan) -> str:
    what = f"{plan.n_models} models, {plan.n_requests} requests in {plan.duration_s:.0f} s, {escape(plan.hardware.gpu)}"
    answer = plan.answer
    if answer is None:
        return f"<p>{what}: no pool that was tried keeps {plan.goal:.1%} of tokens on time.</p>"
    cost, energy = plan.dollars_per_million_tokens() or 0.0, plan.watt_hours_per_million_tokens() or 0.0
    return (
        f"<p>{what}: <b>{plan.devices('slack')} devices</b> keep {answer.summary.tokens_on_time:.2%} of tokens on time "
        f"(goal {plan.goal:.1%}). What limits: {answer.limit}. About ${cost:.2f} and {energy:.0f} Wh per million tokens.</p>"
    )


def _table(plan: CapacityPlan) -> str:
    rows = []
    for policy in plan.fewest:
        saved = plan.saved_share(policy)
        devices = plan.devices(policy)
        rows.append(
            f"<tr><td>{policy}</td><td>{'more than tried' if devices is None else devices}</td>"
            f"<td>{'' if saved is None or policy == 'slack' else f'{saved:.0%}'}</td></tr>"
        )
    return f"<table><tr><th>policy</th><th>devices</th><th>saved by slack</th></tr>{''.join(rows)}</table>"


def _attainment(plan: CapacityPlan) -> str:
    most = max((p.n_instances for p in plan.points), default=1)

    def x(n: int) -> float:
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * n / most

    def y(share: float) -> float:
        return _MARGIN / 2 + (_HEIGHT - _MARGIN) * (1 - share)

    parts = [
        f'<line x1="{_MARGIN}" x2="{_WIDTH}" y1="{y(plan.goal):.1f}" y2="{y(plan.goal):.1f}" stroke="#bbb"/>'
    ]
    parts += [f'<text x="4" y="{y(share) + 4:.1f}">{share:.0%}</text>' for share in (0.0, 0.5, 1.0)]
    for place, policy in enumerate(plan.fewest):
        own: list[Point] = [p for p in plan.points if p.policy == policy]
        colour = _COLOURS.get(policy, "#444")
        line = " ".join(f"{x(p.n_instances):.1f},{y(p.summary.tokens_on_time):.1f}" for p in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(p.n_instances):.1f}" cy="{y(p.summary.tokens_on_time):.1f}" r="3" fill="{colour}">'
            f"<title>{policy} on {p.n_instances}: {p.summary.tokens_on_time:.3f}</title></circle>"
            for p in own
        ]
        parts.append(f'<text x="{_MARGIN + 130 * place}" y="{_HEIGHT - 4}" fill="{colour}">{policy}</text>')
    parts.append(f'<text x="{_WIDTH - 90}" y="{_HEIGHT - 4}">{most} instances</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'


def _timeline(plan: CapacityPlan, longest_s: float = 60.0) -> str:
    """The first minute: one row per instance, one colour per model."""
    spans = [span for span in plan.holdings if span[2] < longest_s]
    if not spans:
        return "<p>Nothing ran.</p>"
    end_s = min(longest_s, max(end for *_, end in spans))
    models = sorted({model for _, model, _, _ in spans})
    hue = {model: int(360 * place / len(models)) for place, model in enumerate(models)}
    n_rows = 1 + max(instance for instance, *_ in spans)
    bars = "".join(
        f'<rect x="{start / end_s * _WIDTH:.2f}" y="{18 * instance}" width="{max(0.2, (end - start) / end_s * _WIDTH):.2f}" '
        f'height="15" fill="hsl({hue[model]} 55% 55%)"><title>{escape(model)}</title></rect>'
        for instance, model, start, end in spans
    )
    return f'<svg viewBox="0 0 {_WIDTH} {18 * n_rows}">{bars}</svg><p>The first {end_s:.0f} s; colours are models.</p>'
