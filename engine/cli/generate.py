"""`tokenmux generate` and `tokenmux chat`: text from a served model."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokenmux.cli.remote import connected
from tokenmux.cli.shared_options import ModelArgument

if TYPE_CHECKING:
    from tokenmux.client import GenerateOptions

_INT32 = 2**31 - 1
_MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", "-n", min=1, max=_INT32, help="Most tokens to generate. Default: the server's."
    ),
]
_Temperature = Annotated[float, typer.Option("--temperature", "-t", help="Sampling temperature; 0: greedy.")]
_TopK = Annotated[
    int, typer.Option(min=0, max=_INT32, help="Sample from the k most likely tokens; 0: no limit.")
]
_TopP = Annotated[
    float | None, typer.Option(help="Sample from the most likely tokens with this total probability.")
]
_Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same tokens.")]
_Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Text that ends the answer. Repeatable.")
]


def generate_command(
    ctx: typer.Context,
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue; - reads it from stdin.")],
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = 0.0,
    top_k: _TopK = 0,
    top_p: _TopP = None,
    seed: _Seed = None,
    stop: _Stop = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print token counts and times to stderr.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as one JSON document.")
    ] = False,
) -> None:
    """Continue a text and print the continuation as it arrives."""
    from tokenmux.cli.streaming import show_stream, summary_line
    from tokenmux.cli.tables import as_json

    options = _options(max_tokens, temperature, top_k, top_p, seed, stop)
    errors = Console(stderr=True)
    with connected(ctx) as client:
        text = sys.stdin.read() if prompt == "-" else prompt
        if json:
            typer.echo(as_json(client.generate(model, text, **options)))
            return
        _, finish = show_stream(client.stream(model, text, **options), errors)
    if stats and finish is not None:
        errors.print(summary_line(finish), style="dim", highlight=False)


def chat_command(
    ctx: typer.Context,
    model: ModelArgument,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    max_tokens: _MaxTokens = None,
    temperature: _Temperature = 0.0,
    top_k: _TopK = 0,
    top_p: _TopP = None,
    seed: _Seed = None,
    stop: _Stop = None,
) -> None:
    """Chat with a model, one line at a time. Ctrl-C cancels an answer, Ctrl-D quits."""
    from tokenmux.cli.streaming import converse

    options = _options(max_tokens, temperature, top_k, top_p, seed, stop)
    with connected(ctx) as client:
        converse(client, model, system, Console(stderr=True), options)


def _options(
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> "GenerateOptions":
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or [],
    }
