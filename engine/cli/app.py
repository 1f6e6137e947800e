"""The command line, and composition root: the only reader of arguments and of the environment.

Commands are thin; what they do is in the packages that they import, and they import only when they run, so that `--help` is fast.
Exit status: 0 done, 1 it did not work, 2 wrong usage or configuration. Errors are told in a line on stderr, with the remedy.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EPIPE
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from tokenmux.cli.kernels import kernels_app
from tokenmux.cli.text import name as shown_name
from tokenmux.cli.text import safe
from tokenmux.core.errors import ConfigError, TokenmuxError

if TYPE_CHECKING:
    from tokenmux.client import Client, GenerateOptions

DEFAULT_SERVER = "127.0.0.1:50051"
FAILED, MISUSED = 1, 2


class _Failed(TokenmuxError):
    """A call to the server failed."""


_NOWHERE = io.StringIO()
"""In the place of a stdout that failed, so that it is not flushed again at the end."""


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
            # Whoever opens a file says so itself: this is stdout. Who closed the pipe knows, and needs no word (typer ends with status 1).
            if error.errno == EPIPE or error.filename is not None:
                raise
            typer.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            sys.stdout = _NOWHERE
            raise typer.Exit(FAILED) from error


app = typer.Typer(
    cls=_Root,
    name="tokenmux",
    help="Serve many language models from a few devices: whichever model's next token is due soonest runs next.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    add_completion=False,
)
models_app = typer.Typer(help="The catalogue: list, register, load, unload, pin.", no_args_is_help=True)
pool_app = typer.Typer(help="The pool: devices, memory, and what runs where.", no_args_is_help=True)
app.add_typer(models_app, name="models", rich_help_panel="Operating a pool")
app.add_typer(pool_app, name="pool", rich_help_panel="Operating a pool")
app.add_typer(kernels_app, name="kernels", rich_help_panel="Operating a pool")


@dataclass(frozen=True, slots=True)
class _Server:
    """How to reach the server, from the options before the command."""

    target: str
    api_key: str | None
    tls: bool
    ca_file: Path | None
    insecure: bool


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenmux {metadata.version('tokenmux')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    server: Annotated[
        str, typer.Option(envvar="TOKENMUX_SERVER", metavar="HOST:PORT", help="The server to talk to.")
    ] = DEFAULT_SERVER,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="TOKENMUX_API_KEY",
            help="Key of the server. Better in the environment than in the shell's history.",
        ),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Talk TLS, trusting the system's authorities.")] = False,
    ca_file: Annotated[
        Path | None, typer.Option(envvar="TOKENMUX_CA_FILE", help="Talk TLS, trusting this authority (PEM).")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Send the key to another machine without TLS, for all on the way to read."
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = _Server(server, api_key, tls, ca_file, insecure)


@contextmanager
def _connected(ctx: typer.Context) -> "Iterator[Client]":
    from tokenmux.client import CallFailed, Client, WrongArgument

    server: _Server = ctx.obj
    try:
        client = Client(
            server.target,
            api_key=server.api_key or None,
            tls=server.tls,
            ca_file=server.ca_file,
            insecure=server.insecure,
        )
    except WrongArgument as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{server.ca_file}: cannot be read: {error.strerror}") from error
    try:
        with client:
            yield client
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"an argument or the input is not valid UTF-8 text: {error.reason}") from error
    except WrongArgument as error:
        raise ConfigError(str(error)) from error
    except CallFailed as error:
        hint = f"; is a server running on {server.target}?" if error.code.name == "UNAVAILABLE" else ""
        raise _Failed(f"{error}{hint}") from error


# ── serving ──────────────────────────────────────────────────────────────────────────────────────────────────


@app.command(rich_help_panel="Serving")
def serve(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="pool.yaml. Flags go before what it says.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="NAME=PATH", help="Serve a folder of safetensors or a GGUF file."
        ),
    ] = None,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Default: 127.0.0.1:50051.")] = None,
    catalogue: Annotated[Path | None, typer.Option(help="Where converted models are kept.")] = None,
    arena: Annotated[str | None, typer.Option(metavar="SIZE", help="Device memory, such as 2GiB.")] = None,
    host_cache: Annotated[str | None, typer.Option(metavar="SIZE", help="Host memory for weights.")] = None,
    host_kv: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Host memory for paged-out KV cache.")
    ] = None,
) -> None:
    """Run a server until SIGTERM or Ctrl-C; then let live requests complete.

    [dim]tokenmux serve --model small=./models/small --arena 2GiB[/dim]
    """
    import asyncio
    import logging

    from tokenmux.server.config import Override, load_config

    flags = {
        ("listen",): ("--listen", listen),
        ("catalogue",): ("--catalogue", catalogue and str(catalogue.absolute())),
        ("device", "arena"): ("--arena", arena),
        ("device", "host_cache"): ("--host-cache", host_cache),
        ("device", "host_kv"): ("--host-kv", host_kv),
    }
    overrides = [Override(place, value, flag) for place, (flag, value) in flags.items() if value is not None]
    for named in model or ():
        name, equals, path = named.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--model {named}: write NAME=PATH, such as small=./models/small")
        overrides.append(Override(("models", name), str(Path(path).absolute()), "--model"))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    checked = load_config(config, overrides)

    from tokenmux.server.listening import reserved

    with reserved(checked.listen) as reservation:
        # torch comes with these: not before the configuration is right, and the address ours
        from tokenmux.cli.progress import progress_bars
        from tokenmux.server.serve import open_catalogue
        from tokenmux.server.serve import serve as run

        with progress_bars(Console(stderr=True)) as progress:
            models = open_catalogue(checked, progress)
        asyncio.run(run(checked, models, typer.echo, reservation))


@app.command(rich_help_panel="Serving")
def demo(
    duration: Annotated[
        float, typer.Option(min=5.0, max=3600.0, metavar="SECONDS", help="Length of the stream of requests.")
    ] = 60.0,
    cache: Annotated[Path, typer.Option(help="Where the models are kept for the next run.")] = Path(
        "~/.cache/tokenmux"
    ),
    seed: Annotated[int, typer.Option(help="Another seed, another stream.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON document, the last line of stdout.")
    ] = False,
) -> None:
    """Twelve models, one small virtual GPU, a real stream of requests, and a report; about two minutes.

    Needs no GPU and no model hub: the weights are SmolLM2-135M-Instruct from wherever it can be had, and small random ones.
    """
    from tokenmux.demo.run import DemoOptions, run_demo

    try:
        folder = cache.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{cache}: {error}") from error
    raise typer.Exit(run_demo(DemoOptions(folder, duration, seed, as_json=json)))


@app.command(rich_help_panel="Operating a pool")
def plan(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="An architecture (qwen2.5-7b), a folder with a config.json, NAME=either, or COUNT*either; "
            "@RATE after it for requests per second of each.",
            show_default=False,
        ),
    ] = None,
    from_server: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Take models and recorded traffic from a running server."),
    ] = None,
    last: Annotated[
        float,
        typer.Option(min=0.0, metavar="SECONDS", help="Of the server's traffic; 0: all that it remembers."),
    ] = 0.0,
    gpu: Annotated[str, typer.Option(help="A10, A100, H20, H100 or H800.")] = "H100",
    group: Annotated[int, typer.Option(min=1, help="GPUs of one instance: a tensor-parallel group.")] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="Traffic to plan for: JSONL or CSV. Default: Poisson.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.0, help="Requests per second of each model.")] = 0.1,
    duration: Annotated[float, typer.Option(min=1.0, metavar="SECONDS", help="Of the traffic.")] = 300.0,
    ttft: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="First token due. Default: the trace's, or 10."),
    ] = None,
    tpot: Annotated[
        float | None,
        typer.Option(min=0.0001, metavar="SECONDS", help="Each token after. Default: the trace's, or 0.1."),
    ] = None,
    goal: Annotated[float, typer.Option(min=0.5, max=1.0, help="Share of all tokens on time.")] = 0.99,
    compare: Annotated[bool, typer.Option(help="Plan for the other policies as well.")] = True,
    cost: Annotated[bool, typer.Option("--cost", help="Dollars and energy per million tokens.")] = False,
    price: Annotated[
        float | None, typer.Option(min=0.0, metavar="DOLLARS", help="Of an hour of one GPU; implies --cost.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated traffic.")] = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Simulate in so many. Default: one a processor.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page with plots.")] = None,
    chrome: Annotated[
        Path | None, typer.Option(help="Write every step and copy as a trace for ui.perfetto.dev.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON document.")] = False,
) -> None:
    """How many GPUs a catalogue needs, what limits, and what other policies would need. Simulated; takes minutes for a large catalogue.

    [dim]tokenmux plan '30*qwen2.5-7b' '10*llama2-13b@0.5' ./my-model --html plan.html[/dim]

    [dim]tokenmux plan --from-server 127.0.0.1:50051[/dim]
    """
    from functools import partial

    from tokenmux.cli.plan import ask_server, plan_in_processes
    from tokenmux.simulator.hardware import gpu as known_gpu
    from tokenmux.simulator.planner.plan_command import Output, Question, plan_command
    from tokenmux.simulator.scenario import Hardware

    errors = Console(stderr=True)
    known_gpu(gpu)
    question = Question(
        models or (),
        Hardware(gpu=gpu, n_devices=group),
        trace,
        rate,
        duration,
        ttft,
        tpot,
        goal,
        compare,
        seed,
    )
    if from_server is not None:
        ctx.obj = replace(ctx.obj, target=from_server)
        with _connected(ctx) as client, errors.status(shown_name(f"asking {from_server}")):
            seen = ask_server(client, last, with_traffic=trace is None)
        question = replace(question, known=seen.models, trace=trace or seen.trace)
    plan_command(
        question,
        Output(json, html, chrome, cost or price is not None, price),
        partial(plan_in_processes, asked=processes, console=errors),
        note=lambda text: errors.print(safe(f"note: {text}"), markup=False, highlight=False, soft_wrap=True),
    )


@app.command(rich_help_panel="Serving")
def pull(
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="A repository of the model hub.")],
    name: Annotated[str | None, typer.Option(help="Name in the catalogue. Default: NAME.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32. Default: the checkpoint's own.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="pool.yaml that names the catalogue.")
    ] = None,
    catalogue: Annotated[Path | None, typer.Option(help="Where converted models are kept.")] = None,
) -> None:
    """Download a model from the hub into the catalogue, from which the next server serves it.

    A server that runs already takes it up with [dim]tokenmux models register NAME[/dim].
    """
    from tokenmux.server.config import Override, load_config

    given = [] if catalogue is None else [Override(("catalogue",), str(catalogue.absolute()), "--catalogue")]
    folder = load_config(config, given).catalogue

    from tokenmux.cli.progress import progress_bars
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


# ── generating ───────────────────────────────────────────────────────────────────────────────────────────────

_INT32 = 2**31 - 1
Model = Annotated[str, typer.Argument(help="Name of a served model.")]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", min=1, max=_INT32, help="Default: the server's.")
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, max=_INT32, help="Draw among the k likeliest tokens; 0: no limit.")]
TopP = Annotated[float | None, typer.Option(help="Draw among the likeliest with this probability together.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same tokens.")]
Stop = Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given again.")]


@app.command(rich_help_panel="Talking to a server")
def generate(
    ctx: typer.Context,
    model: Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Tell tokens and times on stderr afterwards.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as one JSON document.")
    ] = False,
) -> None:
    """Continue a text, printing it as it comes."""
    from tokenmux.cli.talk import show_stream, summary
    from tokenmux.cli.views import as_json

    options = _options(max_tokens, temperature, top_k, top_p, seed, stop)
    errors = Console(stderr=True)
    with _connected(ctx) as client:
        text = sys.stdin.read() if prompt == "-" else prompt
        if json:
            typer.echo(as_json(client.generate(model, text, **options)))
            return
        _, finish = show_stream(client.stream(model, text, **options), errors)
    if stats and finish is not None:
        errors.print(summary(finish), style="dim", highlight=False)


@app.command(rich_help_panel="Talking to a server")
def chat(
    ctx: typer.Context,
    model: Model,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    """Converse with a model, a line at a time. Ctrl-C cancels an answer, Ctrl-D leaves."""
    from tokenmux.cli.talk import converse

    options = _options(max_tokens, temperature, top_k, top_p, seed, stop)
    with _connected(ctx) as client:
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


# ── operating ────────────────────────────────────────────────────────────────────────────────────────────────

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@models_app.command("list")
def models_list(ctx: typer.Context, json: Json = False) -> None:
    """All models with their state and what they have cost so far."""
    from tokenmux.cli.views import as_json, models_table

    with _connected(ctx) as client:
        models = client.models.list()
    if json:
        typer.echo(as_json(models))
    else:
        Console().print(models_table(models))


@models_app.command("register")
def models_register(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The name under which it is served.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of safetensors or GGUF file, on the server's machine. Left out: it was pulled."
        ),
    ] = "",
) -> None:
    """Add a model. Its weights are converted once if need be, which may take minutes."""
    with _connected(ctx) as client, Console(stderr=True).status(shown_name(f"registering {name}")):
        client.models.register(name, source)
    typer.echo(f"{name} is served")


@models_app.command("remove")
def models_remove(
    ctx: typer.Context,
    name: Model,
    force: Annotated[
        bool, typer.Option("--force", help="Even under live requests, which then fail.")
    ] = False,
) -> None:
    """Stop serving a model and delete its converted weights; the source stays."""
    with _connected(ctx) as client:
        client.models.unregister(name, force=force)
    typer.echo(f"{name} is removed")


@models_app.command("load")
def models_load(
    ctx: typer.Context,
    name: Model,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is resident.")] = False,
) -> None:
    """Bring a model onto the device before anybody asks for it."""
    with _connected(ctx) as client, Console(stderr=True).status(shown_name(f"loading {name}")):
        model = client.models.load(name, wait=wait)
    typer.echo(f"{name}: {model.residency.value}")


@models_app.command("unload")
def models_unload(ctx: typer.Context, name: Model) -> None:
    """Take a model off the device."""
    with _connected(ctx) as client:
        client.models.unload(name)
    typer.echo(f"{name} leaves the device")


@models_app.command("pin")
def models_pin(ctx: typer.Context, name: Model) -> None:
    """Keep a model on the device."""
    with _connected(ctx) as client:
        client.models.pin(name)
    typer.echo(f"{name} is pinned")


@models_app.command("unpin")
def models_unpin(ctx: typer.Context, name: Model) -> None:
    """No longer keep a model on the device."""
    with _connected(ctx) as client:
        client.models.pin(name, pinned=False)
    typer.echo(f"{name} is not pinned")


@pool_app.command("status")
def pool_status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    json: Json = False,
) -> None:
    """Memory, channels and models, now or live."""
    from rich.live import Live

    from tokenmux.cli.views import as_json, pool_view

    with _connected(ctx) as client:
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
def pool_resize(
    ctx: typer.Context,
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="Device memory to use from now on, such as 2GiB.")
    ],
) -> None:
    """Give device memory back to the system, or take more. Requests wait until it is done, and go on.

    Holds until the server is restarted: [dim]device.arena[/dim] in its pool.yaml says what it starts with.
    """
    from tokenmux.core.sizes import parse_size, show_size

    try:
        arena_bytes = parse_size(size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not 0 < arena_bytes < 1 << 63:
        raise ConfigError(f"{size} is no size for a pool: ask for more than nothing, and less than 8 EiB")
    with _connected(ctx) as client, Console(stderr=True).status("waiting for what is in flight"):
        arena_bytes = client.pool.resize(arena_bytes)
    typer.echo(f"the pool has {show_size(arena_bytes)} of device memory")


@pool_app.command("trace")
def pool_trace(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("trace.json"),
    seconds: Annotated[float, typer.Option(min=0.0, max=3600.0, help="How long to watch.")] = 10.0,
    past: Annotated[
        bool, typer.Option("--past", help="The last so many seconds instead; 0: all that is remembered.")
    ] = False,
) -> None:
    """Every step, copy and request of some seconds, as a Chrome trace for ui.perfetto.dev."""
    import time

    with _connected(ctx) as client:
        client.pool.trace(1e-9)  # before the wait, so that a server that cannot is told of at once
        if not past:
            with Console(stderr=True).status(f"watching for {seconds:g} s"), suppress(KeyboardInterrupt):
                began_s = time.monotonic()
                time.sleep(seconds)
            seconds = max(time.monotonic() - began_s, 1e-9)
        trace = client.pool.trace(seconds)
    _write(output, trace.chrome_trace)
    typer.echo(
        f"{output}: {trace.n_spans} operations and requests, {trace.seconds:.1f} s; open it in ui.perfetto.dev"
    )


@pool_app.command("traffic")
def pool_traffic(
    ctx: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .jsonl or .csv, perhaps .gz.")
    ] = Path("traffic.jsonl"),
    last: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="0: all that the server remembers.")
    ] = 0.0,
) -> None:
    """The requests that the server has seen, lengths and times and never text, as a trace for [dim]tokenmux plan --trace[/dim]."""
    from tokenmux.cli.plan import ask_server
    from tokenmux.workload.trace import write_trace

    with _connected(ctx) as client:
        seen = ask_server(client, last)
    try:
        write_trace(output, seen.trace)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from error
    typer.echo(f"{output}: {len(seen.trace)} requests")


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
