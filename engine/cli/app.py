"""The command `tokenmux`: its general options, its commands, and how errors are shown.

Only this room reads arguments and the environment. Commands are thin: the work is done by packages that are
imported when a command runs, so that `--help` is fast. Exit status: 0 success, 1 failure, 2 wrong usage or
configuration. An error is one line on stderr that says what to do.
"""

import io
import os
import sys
from contextlib import suppress
from errno import EPIPE
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tokenmux.cli.demo import demo_command
from tokenmux.cli.embed import embed_command
from tokenmux.cli.generate import chat_command, generate_command
from tokenmux.cli.kernels import kernels_app
from tokenmux.cli.models import models_app
from tokenmux.cli.plan import plan_command
from tokenmux.cli.pool import pool_app
from tokenmux.cli.pull import pull_command
from tokenmux.cli.remote import Remote
from tokenmux.cli.safe_text import safe
from tokenmux.cli.serve import serve_command
from tokenmux.cli.standard_streams import make_usable
from tokenmux.core.addresses import DEFAULT_ADDRESS
from tokenmux.core.compiled_form import is_compiled
from tokenmux.core.errors import ConfigError, TokenmuxError

FAILED, MISUSED = 1, 2

_NOWHERE = io.StringIO()
"""Replaces a stdout that cannot be written, so that Python does not flush that again at exit."""


class _Root(TyperGroup):
    """Turns errors that were raised on purpose into a line on stderr and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            typer.echo(safe(f"error: {error}"), err=True)
            raise typer.Exit(MISUSED) from error
        except TokenmuxError as error:
            typer.echo(safe(f"error: {error}"), err=True)
            raise typer.Exit(FAILED) from error
        except OSError as error:
            _say_unwritten(error)
            raise typer.Exit(FAILED) from error


def _say_unwritten(error: OSError) -> None:
    """Say that stdout cannot be written. Raises `error` if it is about something else.

    An error with a file name is a bug: code that opens files reports them itself. What remains is stdout. A
    closed pipe needs no message: typer exits with status 1.
    """
    if error.errno == EPIPE or error.filename is not None:
        raise error
    typer.echo(f"error: the output cannot be written: {error.strerror}", err=True)
    sys.stdout = _NOWHERE


app = typer.Typer(
    cls=_Root,
    name="tokenmux",
    help="Serve many language models from a few devices, switching between models token by token.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    add_completion=False,
)

_SERVING, _TALKING, _OPERATING = "Serving", "Talking to a server", "Operating a pool"
app.command("serve", rich_help_panel=_SERVING)(serve_command)
app.command("pull", rich_help_panel=_SERVING)(pull_command)
app.command("demo", rich_help_panel=_SERVING)(demo_command)
app.command("generate", rich_help_panel=_TALKING)(generate_command)
app.command("chat", rich_help_panel=_TALKING)(chat_command)
app.command("embed", rich_help_panel=_TALKING)(embed_command)
app.add_typer(models_app, name="models", rich_help_panel=_OPERATING)
app.add_typer(pool_app, name="pool", rich_help_panel=_OPERATING)
app.command("plan", rich_help_panel=_OPERATING)(plan_command)
app.add_typer(kernels_app, name="kernels", rich_help_panel=_OPERATING)


def _show_version(wanted: bool) -> None:
    if wanted:
        form = " (compiled)" if is_compiled() else ""
        typer.echo(f"tokenmux {metadata.version('tokenmux')}{form}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    server: Annotated[
        str, typer.Option(envvar="TOKENMUX_SERVER", metavar="HOST:PORT", help="Address of the server.")
    ] = DEFAULT_ADDRESS,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="TOKENMUX_API_KEY",
            metavar="KEY",
            help="API key. Prefer the environment variable: the shell's history keeps command lines.",
        ),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Use TLS with the system's certificate authorities.")
    ] = False,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TOKENMUX_CA_FILE", metavar="FILE", help="Use TLS with this certificate authority (PEM)."
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Send the API key to another machine without TLS, although the network can read it.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = Remote(server, api_key, tls, ca_file, insecure)


def main() -> None:
    """Entry point of the console script."""
    make_usable()
    try:
        app()
    except OSError as error:  # of what the options themselves print: help, and the version
        _say_unwritten(error)
        sys.exit(FAILED)
    except SystemExit as ended:
        if "triton" in sys.modules and isinstance(ended.code, int | None):
            # torch has loaded it, of which a command for CPUs knows nothing. While Python exits it prints
            # reports of leaks, and a thread of a library may abort.
            with suppress(OSError):  # Python says the same of a closed pipe
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(ended.code or 0)
        raise
