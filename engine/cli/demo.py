"""`tokenmux demo`: the two-minute demonstration."""

from pathlib import Path
from typing import Annotated

import typer

from tokenmux.core.errors import ConfigError


def demo_command(
    duration: Annotated[
        float, typer.Option(min=5.0, max=3600.0, metavar="SECONDS", help="How long requests are sent.")
    ] = 60.0,
    cache: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder that keeps the models for the next run.")
    ] = Path("~/.cache/tokenmux"),
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=16,
            metavar="N",
            help="Number of virtual GPUs. Default: 2 on four cores or more.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the stream of requests.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Also print the report as JSON, in the last line of stdout.")
    ] = False,
) -> None:
    """Serve twelve models from one or two small virtual GPUs and report how it went. Takes about two minutes.

    Needs no GPU: six models are copies of SmolLM2-135M-Instruct, six are small and random.
    """
    from tokenmux.demo.run import DemoOptions, run_demo

    try:
        folder = cache.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{cache}: {error}") from error
    raise typer.Exit(run_demo(DemoOptions(folder, devices, duration, seed, as_json=json)))
