"""`tokenmux models`: the catalogue of a running server."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokenmux.cli.remote import connected
from tokenmux.cli.safe_text import shown_name
from tokenmux.cli.shared_options import JsonOption, ModelArgument

if TYPE_CHECKING:
    from tokenmux.client import Operation

models_app = typer.Typer(help="List, add, remove, load and pin models.", no_args_is_help=True)


@models_app.command("list")
def models_list_command(ctx: typer.Context, json: JsonOption = False) -> None:
    """List all models with their state and counters."""
    from tokenmux.cli.tables import ModelsView, as_json

    with connected(ctx) as client:
        models = client.models.list()
    if json:
        typer.echo(as_json(models))
    else:
        Console().print(ModelsView(models))


@models_app.command("register")
def models_register_command(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name to serve it under.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="[PATH]",
            help="Folder of safetensors or GGUF file on the server's machine. Not needed after a pull.",
        ),
    ] = "",
) -> None:
    """Add a model. Its weights may have to be converted first, which can take minutes. Ctrl-C cancels it, and
    nothing of it is kept."""
    with connected(ctx) as client:
        operation = client.models.start_registration(name, source)
        try:
            with Console(stderr=True).status(shown_name(f"registering {name}")) as line:
                for state in client.operations.watch(operation.name):
                    line.update(shown_name(_progress(state)))
        except KeyboardInterrupt:
            client.operations.cancel(operation.name)
            raise
    typer.echo(f"{name} is served")


def _progress(operation: "Operation") -> str:
    """What a registration is doing, and how much of it is done."""
    said = f"registering {operation.model}"
    if operation.doing:
        said += f": {operation.doing}"
    if operation.total:
        said += f", {min(100, 100 * operation.done // operation.total)}%"
    return said


@models_app.command("remove")
def models_remove_command(
    ctx: typer.Context,
    name: ModelArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Remove it even if it has requests; these fail.")
    ] = False,
) -> None:
    """Stop serving a model and delete its converted weights. Its source files are kept."""
    with connected(ctx) as client:
        client.models.unregister(name, force=force)
    typer.echo(f"{name} is removed")


@models_app.command("load")
def models_load_command(
    ctx: typer.Context,
    name: ModelArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is on the device.")] = False,
) -> None:
    """Load a model onto the device before any request needs it."""
    with connected(ctx) as client, Console(stderr=True).status(shown_name(f"loading {name}")):
        model = client.models.load(name, wait=wait)
    typer.echo(f"{name}: {model.residency.value}")


@models_app.command("unload")
def models_unload_command(ctx: typer.Context, name: ModelArgument) -> None:
    """Remove a model from the device. It stays in the catalogue and comes back when requests need it."""
    with connected(ctx) as client:
        client.models.unload(name)
    typer.echo(f"{name} leaves the device")


@models_app.command("pin")
def models_pin_command(ctx: typer.Context, name: ModelArgument) -> None:
    """Keep a model on the device."""
    with connected(ctx) as client:
        client.models.pin(name)
    typer.echo(f"{name} is pinned")


@models_app.command("unpin")
def models_unpin_command(ctx: typer.Context, name: ModelArgument) -> None:
    """Let a pinned model leave the device again."""
    with connected(ctx) as client:
        client.models.pin(name, pinned=False)
    typer.echo(f"{name} is not pinned")
