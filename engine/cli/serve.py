"""`tokenmux serve`: run a server."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenmux.cli.shared_options import CatalogueOption
from tokenmux.core.addresses import DEFAULT_ADDRESS
from tokenmux.core.errors import ConfigError


def serve_command(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="Configuration (pool.yaml). Options override it."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME=PATH",
            help="Serve the model in this folder of safetensors or GGUF file. Repeatable.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help=f"Address to listen on. Default: {DEFAULT_ADDRESS}."),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of OpenAI's dialect of HTTP, such as 127.0.0.1:8000. Default: none.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address of /metrics for Prometheus, such as 127.0.0.1:9090. Default: that of --http.",
        ),
    ] = None,
    catalogue: CatalogueOption = None,
    arena: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each device to use, such as 2GiB.")
    ] = None,
    devices: Annotated[
        int | None, typer.Option(metavar="N", help="Number of devices alike. Default: 1.")
    ] = None,
    host_cache: Annotated[str | None, typer.Option(metavar="SIZE", help="Host memory for weights.")] = None,
    host_kv: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Host memory for KV cache that leaves the devices.")
    ] = None,
) -> None:
    """Run a server until SIGTERM or Ctrl-C, then complete its running requests.

    [dim]tokenmux serve --model small=./models/small --arena 2GiB[/dim]
    """
    import asyncio
    import logging

    from tokenmux.server.config import Override, load_config

    flags = {
        ("listen",): ("--listen", listen),
        ("http",): ("--http", http),
        ("metrics",): ("--metrics", metrics),
        ("catalogue",): ("--catalogue", catalogue and str(catalogue.absolute())),
        ("device", "arena"): ("--arena", arena),
        ("device", "count"): ("--devices", devices),
        ("host", "cache"): ("--host-cache", host_cache),
        ("host", "kv"): ("--host-kv", host_kv),
    }
    overrides = [Override(place, value, flag) for place, (flag, value) in flags.items() if value is not None]
    names: set[str] = set()
    for named in model or ():
        name, equals, path = named.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--model {named}: write NAME=PATH, such as small=./models/small")
        if name in names:
            raise ConfigError(f"--model {named}: {name} is given twice: give each model its own name")
        names.add(name)
        overrides.append(Override(("models", name), str(Path(path).absolute()), "--model"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    checked = load_config(config, overrides)

    from tokenmux.server.listening import reserved

    with ExitStack() as held:
        reservations = [held.enter_context(reserved(checked.listen))]
        for key, address in (("http", checked.http), ("metrics", checked.metrics)):
            if address is not None:
                reservations.append(held.enter_context(reserved(address, key)))
        # What takes long to import comes last: first the configuration is checked, and the addresses
        # reserved.
        from tokenmux.cli.progress_bars import progress_bars
        from tokenmux.server.serve import open_catalogue, serve

        with progress_bars(Console(stderr=True)) as progress:
            models = open_catalogue(checked, progress)
        asyncio.run(serve(checked, models, typer.echo, reservations))
