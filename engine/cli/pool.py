"""`tokenmux pool`: watch, trace and resize a running pool."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenmux.cli.output_file import write_output
from tokenmux.cli.remote import connected
from tokenmux.cli.shared_options import JsonOption
from tokenmux.core.errors import ConfigError

pool_app = typer.Typer(help="Show, trace and resize a running pool.", no_args_is_help=True)


@pool_app.command("status")
def pool_status_command(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep updating until Ctrl-C.")] = False,
    json: JsonOption = False,
) -> None:
    """Show memory, activity, models and tenants, once or continuously."""
    from rich.live import Live

    from tokenmux.cli.tables import as_json, pool_view

    with connected(ctx) as client:
        if not watch:
            status = client.pool.status()
            if json:
                typer.echo(as_json(status))
            else:
                Console().print(pool_view(status))
            return
        before = None
        with suppress(KeyboardInterrupt), Live(console=Console(), auto_refresh=False) as live:
            for status in client.pool.watch(min_interval_s=0.5):
                if json:
                    typer.echo(as_json(status))
                else:
                    live.update(pool_view(status, before), refresh=True)
                before = status


@pool_app.command("resize")
def pool_resize_command(
    ctx: typer.Context,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Device memory to use, such as 2GiB.")],
) -> None:
    """Change how much device memory the pool uses. Requests wait until it is done, then continue.

    Lasts until the server restarts with the size in its pool.yaml ([dim]device.arena[/dim]).
    """
    from tokenmux.core.sizes import parse_size, show_size

    try:
        arena_bytes = parse_size(size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not 0 < arena_bytes < 1 << 63:
        raise ConfigError(f"{size} is not a valid pool size: it must be more than 0 and less than 8 EiB")
    with connected(ctx) as client, Console(stderr=True).status("waiting for running operations"):
        arena_bytes = client.pool.resize(arena_bytes)
    typer.echo(f"the pool has {show_size(arena_bytes)} of device memory")


@pool_app.command("trace")
def pool_trace_command(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")] = Path(
        "trace.json"
    ),
    seconds: Annotated[
        float, typer.Option(min=0.0, max=3600.0, metavar="SECONDS", help="How long to record.")
    ] = 10.0,
    past: Annotated[
        bool,
        typer.Option(
            "--past", help="Write the last --seconds instead of recording; 0: all that the server remembers."
        ),
    ] = False,
) -> None:
    """Record every step, copy and request as a Chrome trace for ui.perfetto.dev."""
    import time

    with connected(ctx) as client:
        client.pool.trace(1e-9)  # fails now, before the wait, if this server keeps no trace
        if not past:
            with Console(stderr=True).status(f"recording for {seconds:g} s"), suppress(KeyboardInterrupt):
                began_s = time.monotonic()
                time.sleep(seconds)
            seconds = max(time.monotonic() - began_s, 1e-9)
        trace = client.pool.trace(seconds)
    write_output(output, trace.chrome_trace)
    typer.echo(
        f"{output}: {trace.n_spans} operations and requests, {trace.seconds:.1f} s; open it in "
        "ui.perfetto.dev"
    )


@pool_app.command("traffic")
def pool_traffic_command(
    ctx: typer.Context,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to write: .jsonl or .csv, optionally with .gz."
        ),
    ] = Path("traffic.jsonl"),
    last: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="SECONDS", help="Only the last seconds; 0: all that the server remembers."
        ),
    ] = 0.0,
) -> None:
    """Save the requests that the server has seen as a trace for [dim]tokenmux plan --trace[/dim].

    A trace has times and lengths of requests, never their text.
    """
    from tokenmux.cli.ask_server import ask_server
    from tokenmux.workload.trace import write_trace

    with connected(ctx) as client:
        seen = ask_server(client, last)
    try:
        write_trace(output, seen.trace)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from error
    typer.echo(f"{output}: {len(seen.trace)} requests")
