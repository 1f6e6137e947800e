"""`tokenmux embed`: vectors of texts from a served model."""

import json as json_format
import sys
from typing import Annotated

import typer

from tokenmux.cli.remote import connected
from tokenmux.cli.shared_options import JsonOption, ModelArgument


def embed_command(
    ctx: typer.Context,
    model: ModelArgument,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Texts to embed; - reads them from stdin, by line.")
    ],
    dimensions: Annotated[
        int | None,
        typer.Option(min=1, max=2**32 - 1, help="Only the first numbers, if the model can be shortened."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the embedding of each text, one JSON list of numbers a line."""
    from tokenmux.cli.tables import as_json

    inputs = sys.stdin.read().splitlines() if texts == ["-"] else texts
    with connected(ctx) as client:
        found = client.embed(model, inputs, dimensions=dimensions)
    if json:
        typer.echo(as_json(found))
        return
    for vector in found.values:
        typer.echo(json_format.dumps(vector))
