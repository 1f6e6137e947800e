"""`tokenmux pull`: download a model from the hub."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokenmux.cli.shared_options import CatalogueOption


def pull_command(
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the model hub.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name in the catalogue. Default: the repository's.")
    ] = None,
    revision: Annotated[str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="bfloat16, float16 or float32. Default: the checkpoint's own."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Configuration (pool.yaml) with the catalogue."),
    ] = None,
    catalogue: CatalogueOption = None,
) -> None:
    """Download a model from the hub into the catalogue. The next server to start serves it.

    To add it to a running server: [dim]tokenmux models register NAME[/dim]
    """
    from tokenmux.server.config import Override, load_config

    given = [] if catalogue is None else [Override(("catalogue",), str(catalogue.absolute()), "--catalogue")]
    folder = load_config(config, given).catalogue

    from tokenmux.cli.progress_bars import progress_bars
    from tokenmux.models.catalogue.catalogue import Catalogue

    with progress_bars(Console(stderr=True)) as progress:
        entry = Catalogue(folder).pull(
            repository,
            name=name,
            revision=revision,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    typer.echo(f"{entry.name} is in the catalogue {folder}")
