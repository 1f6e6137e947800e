"""A capacity plan as tables for a terminal of 80 columns."""

from rich.console import Console
from rich.table import Table

from tokenmux.simulator.planner.capacity_plan import OURS, CapacityPlan


def print_plan(
    plan: CapacityPlan, console: Console, with_cost: bool = False, dollars_per_hour: float | None = None
) -> None:
    """Print the plan; `dollars_per_hour` is the price of one device, None the round price known for it."""
    console.print(
        f"{plan.n_models} models, {plan.n_requests} requests in {plan.duration_s:.0f} s; "
        f"{plan.goal:.1%} of all tokens have to be on time.",
        highlight=False,
    )
    hardware = plan.hardware
    source = "from a file" if hardware.steps else "vLLM's in eager mode (the Aegaeon artifact's measurements)"
    times = "" if hardware.slower == 1.0 else f", times {hardware.slower:g}"
    console.print(f"Step times: {source}{times}.", style="dim", highlight=False)
    console.print(hardware.hosts_sentence(), style="dim", highlight=False)
    titles = ("policy", plan.hardware.gpu, "slack saves", "limited by")
    answer = _table("Fewest devices", *titles, *(("$/M tokens", "Wh/M tokens") if with_cost else ()))
    for policy in plan.fewest:
        devices, saved = plan.devices(policy), plan.saved_share(policy)
        cost, energy = (
            plan.dollars_per_million_tokens(policy, dollars_per_hour),
            plan.watt_hours_per_million_tokens(policy),
        )
        answer.add_row(
            policy,
            "too many" if devices is None else str(devices),
            "" if saved is None or policy == OURS else f"{saved:.0%}",
            plan.limit(policy),
            *(("" if value is None else f"{value:.2f}" for value in (cost, energy)) if with_cost else ()),
        )
    console.print(answer)
    around = _table(
        "One device less and one more", "policy", plan.hardware.gpu, "tokens", "requests", "TTFT p50",
        "p99 s", "compute", "copies", "disk"
    )  # fmt: skip
    for policy in plan.fewest:
        for point in plan.around(policy):
            s = point.summary
            around.add_row(
                policy if point.n_instances != plan.fewest[policy] else f"[bold]{policy}[/bold]",
                str(point.n_instances * plan.hardware.n_devices),
                *(f"{share:.1%}" for share in (s.tokens_on_time, s.requests_on_time)),
                *(f"{seconds:.2f}" for seconds in (s.ttft_p50_s, s.ttft_p99_s)),
                *(f"{share:.0%}" for share in (point.compute_busy, point.copy_in_busy, point.fetch_busy)),
            )
    console.print(around)
    console.print(
        "tokens, requests: share on time. compute, copies, disk: share of the time busy.",
        style="dim",
        highlight=False,
    )
    if plan.shares_prefixes:
        hits = ", ".join(
            f"{p.prefix_hit_share:.1%} on {p.n_instances * hardware.n_devices}" for p in plan.around(OURS)
        )
        console.print(f"Of the tokens of prompts, others had computed {hits}.", highlight=False)
    relieved = {policy: shares for policy, shares in plan.relieved.items() if shares}
    if relieved:
        resources = list(next(iter(relieved.values())))
        twice = _table("Tokens on time one device short, with twice the", "policy", *resources)
        for policy, shares in relieved.items():
            twice.add_row(policy, *(f"{shares[name]:.1%}" for name in resources))
        console.print(twice)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="dim",
        pad_edge=False,
    )
    for column in columns:
        is_text = column in ("policy", "limited by")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column != "limited by")
    return table
