"""`tokenmux plan`: how many GPUs a set of models needs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenmux.cli.output_file import write_output
from tokenmux.cli.remote import connected
from tokenmux.cli.safe_text import safe, shown_name
from tokenmux.cli.size_argument import memory_size, speed


def plan_command(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="An architecture (qwen2.5-7b) or a folder with a config.json. NAME=MODEL gives it a name, "
            "COUNT*MODEL means several, MODEL@RATE sets the requests per second of each.",
            show_default=False,
        ),
    ] = None,
    from_server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Plan for the models and recorded traffic of this server."),
    ] = None,
    last: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="SECONDS", help="Only the last seconds of the server's traffic; 0: all of it."
        ),
    ] = 0.0,
    gpu: Annotated[str, typer.Option(metavar="GPU", help="A10, A100, H20, H100 or H800.")] = "H100",
    group: Annotated[
        int, typer.Option(min=1, help="GPUs per instance, which form a tensor-parallel group.")
    ] = 1,
    steps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV with step times of your own (docs/traces.md). Default: vLLM's in eager mode.",
        ),
    ] = None,
    slower: Annotated[
        float, typer.Option(min=0.01, max=100.0, metavar="FACTOR", help="Multiplies all step times.")
    ] = 1.0,
    host_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of each host of eight GPUs, for weights and paged-out KV. Default: 2TB.",
        ),
    ] = None,
    copy_speed: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes per second from host memory to a GPU. Default: 16GB."),
    ] = None,
    disk_speed: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes per second that a host reads from disk. Default: 5GB."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Traffic to plan for, JSONL or CSV. Default: generated (Poisson)."),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Requests per second of each model, if generated.")
    ] = 0.1,
    duration: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="Length of the generated traffic.")
    ] = 300.0,
    ttft: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="SECONDS", help="Time to first token. Default: the trace's, otherwise 10."
        ),
    ] = None,
    tpot: Annotated[
        float | None,
        typer.Option(
            min=0.0001, metavar="SECONDS", help="Time per further token. Default: the trace's, otherwise 0.1."
        ),
    ] = None,
    goal: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of all tokens that must be on time.")
    ] = 0.99,
    compare: Annotated[bool, typer.Option(help="Also plan for the other policies.")] = True,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache",
            help="Share KV of prompts that begin alike, as the trace's hash_ids say (docs/traces.md).",
        ),
    ] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Show dollars and energy per million tokens.")] = False,
    price: Annotated[
        float | None, typer.Option(min=0.0, metavar="DOLLARS", help="Price of a GPU hour; implies --cost.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated traffic.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a self-contained HTML page with plots.")
    ] = None,
    chrome: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every step and copy as a trace for ui.perfetto.dev."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON document.")] = False,
) -> None:
    """Find how many GPUs a set of models needs, what limits it, and what other policies would need.

    The answer is simulated. A large catalogue takes minutes.

    [dim]tokenmux plan '30*qwen2.5-7b' '10*llama2-13b@0.5' ./my-model --html plan.html[/dim]

    [dim]tokenmux plan --from-server 127.0.0.1:50051[/dim]
    """
    from dataclasses import asdict, replace
    from functools import partial
    from json import dumps

    from tokenmux.cli.ask_server import ask_server
    from tokenmux.cli.plan_processes import plan_in_processes
    from tokenmux.scheduler.metrics.timeline import chrome_trace
    from tokenmux.simulator.hardware import gpu as known_gpu
    from tokenmux.simulator.planner.capacity_plan import OURS
    from tokenmux.simulator.planner.outlook import outlook
    from tokenmux.simulator.planner.plan_page import html_report
    from tokenmux.simulator.planner.plan_tables import print_plan
    from tokenmux.simulator.planner.question import Question, answer_question, world_of
    from tokenmux.simulator.scenario import Hardware
    from tokenmux.simulator.step_file import read_steps

    errors = Console(stderr=True)
    known_gpu(gpu)  # refused now, before a server is asked
    hardware = Hardware(
        gpu=gpu, n_devices=group, slower=slower, steps=read_steps(steps) if steps is not None else ()
    )
    if host_memory is not None:
        hardware = hardware.with_host_memory(memory_size(host_memory))
    if copy_speed is not None:
        hardware = replace(hardware, copy_bytes_per_s=float(speed(copy_speed)))
    if disk_speed is not None:
        hardware = replace(hardware, disk_bytes_per_s=float(speed(disk_speed)))
    question = Question(
        models or (),
        hardware,
        trace,
        rate,
        duration,
        ttft,
        tpot,
        goal,
        compare,
        seed,
        prefix_cache,
    )
    if from_server is not None:
        ctx.obj = replace(ctx.obj, target=from_server)
        with connected(ctx) as client, errors.status(shown_name(f"asking {from_server}")):
            seen = ask_server(client, last, with_traffic=trace is None)
        question = replace(question, known=seen.models, trace=trace or seen.trace)
    plan = answer_question(
        question,
        partial(plan_in_processes, asked=processes, console=errors),
        lambda text: errors.print(safe(f"note: {text}"), markup=False, highlight=False, soft_wrap=True),
        with_spans=html is not None or chrome is not None,
    )
    coming = None
    if from_server is not None and (fewest := plan.fewest[OURS]) is not None:
        coming = outlook(world_of(question), fewest)
        if coming is None:
            errors.print("note: under two hours of traffic are recorded: too few for a forecast")
    with_cost = cost or price is not None
    if html is not None:
        write_output(html, html_report(plan, with_cost, price))
    if chrome is not None:
        write_output(chrome, chrome_trace(plan.spans))
    if json:
        forecast = {} if coming is None else {"next_hours": list(coming.coming), **asdict(coming.error)}
        typer.echo(dumps({**plan.as_dict(with_cost, price), "forecast": forecast}))
    else:
        print_plan(plan, Console(), with_cost, price)
        if coming is not None:
            typer.echo(coming.sentence(gpu))
