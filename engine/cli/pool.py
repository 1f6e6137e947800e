"""`tokenmux pool`: watch, trace and change a running pool."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenmux.cli.output_file import write_output
from tokenmux.cli.remote import connected
from tokenmux.cli.shared_options import JsonOption
from tokenmux.cli.size_argument import memory_size
from tokenmux.core.errors import ConfigError

pool_app = typer.Typer(help="Show, trace and change a running pool.", no_args_is_help=True)

_LARGEST = 2**32 - 1
_Device = Annotated[
    int,
    typer.Argument(
        metavar="N", min=0, max=_LARGEST, help="Number of the device, as [dim]pool status[/dim] shows it."
    ),
]


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
        console = Console()
        with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
            for status in client.pool.watch(min_interval_s=0.5):
                if json:
                    typer.echo(as_json(status))
                elif console.is_terminal:
                    live.update(pool_view(status, before), refresh=True)
                else:  # Live would show nothing before its end
                    console.print(pool_view(status, before))
                before = status


@pool_app.command("add")
def pool_add_command(
    ctx: typer.Context,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="cpu or cuda. Default: as the first device.")
    ] = None,
    arena: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Device memory to use. Default: as the first device of its kind, or most of a GPU's.",
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(metavar="GPU", help="Index or UUID of a GPU. Default: the first that is not in use."),
    ] = "",
    paged_kv: Annotated[
        str | None,
        typer.Option(
            metavar="exact|int8",
            help="How a GPU pages KV cache: as the other devices.",
        ),
    ] = None,
) -> None:
    """Add a device. Returns when it serves. Lasts until the server restarts with its pool.yaml."""
    arena_bytes = 0 if arena is None else memory_size(arena)
    with connected(ctx) as client, _waiting("starting the device"):
        instance = client.pool.add_device(kind, arena_bytes=arena_bytes, gpu=gpu, paged_kv=paged_kv)
    typer.echo(f"device {instance} serves")


@pool_app.command("drain")
def pool_drain_command(
    ctx: typer.Context,
    device: _Device,
    undo: Annotated[bool, typer.Option("--undo", help="Let it serve again.")] = False,
) -> None:
    """Place nothing on a device any longer. Its requests and pins move to other devices.

    Returns when it is empty.
    """
    with connected(ctx) as client, _waiting("waiting until the device is empty"):
        client.pool.drain_device(device, undo=undo)
    typer.echo(f"device {device} serves again" if undo else f"device {device} is drained")


@pool_app.command("remove")
def pool_remove_command(ctx: typer.Context, device: _Device) -> None:
    """Drain a device and take it out of the pool. Lasts until the server restarts with its pool.yaml."""
    with connected(ctx) as client, _waiting("waiting until the device is empty"):
        client.pool.remove_device(device)
    typer.echo(f"device {device} is removed")


@pool_app.command("resize")
def pool_resize_command(
    ctx: typer.Context,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Device memory to use, such as 2GiB.")],
    device: Annotated[
        int | None,
        typer.Option("--device", "-d", min=0, max=_LARGEST, metavar="N", help="Default: the only one."),
    ] = None,
) -> None:
    """Change how much memory a device uses. Its requests wait until it is done, or move, then continue.

    Lasts until the server restarts with the size in its pool.yaml ([dim]device.arena[/dim]).
    """
    from tokenmux.core.sizes import show_size

    arena_bytes = memory_size(size)
    with connected(ctx) as client, _waiting("waiting for running operations"):
        resized = client.pool.resize(arena_bytes, device)
    which = "the pool" if device is None else f"device {device}"
    typer.echo(f"{which} has {show_size(resized)} of device memory")


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    with Console(stderr=True).status(what):
        yield


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
