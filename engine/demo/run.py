"""The demonstration end to end: real models, a real server in its own processes, a real stream of requests, a
report.

`tokenmux demo` calls `run_demo`. Everything shown goes to stderr, so that `--json` leaves one JSON document
on stdout.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live

from tokenmux.client import AsyncClient, Residency
from tokenmux.core.sizes import show_size
from tokenmux.demo.load import LONGEST, SHORTEST, PlannedRequest, StreamProgress, plan_stream, send_stream
from tokenmux.demo.prepared_models import DemoModels, prepare
from tokenmux.demo.process import served
from tokenmux.demo.report import DemoReport, make_report, print_report
from tokenmux.demo.service_level import Calibration, calibrate
from tokenmux.demo.view import View
from tokenmux.executor.calibrate import measure_cpu
from tokenmux.processes.available_memory import available_bytes
from tokenmux.processes.monotonic_clock import MonotonicClock

QUESTION = "What is the capital of France? Answer in one sentence."
TARGET_BUSY = 0.6
"""Share of the stream's time that its decode steps would take if every request were alone. Batching lowers
it."""
_REFRESH_PER_S = 5
TWO_DEVICES = 2
CORES_PER_DEVICE = 2
MEMORY_MARGIN = 2


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`duration_s` is the length of the stream; downloads, calibration and the report come on top.
    `n_devices` virtual GPUs serve it; None for two, if this machine has the cores and the memory."""

    cache: Path
    n_devices: int | None = None
    duration_s: float = 60.0
    seed: int = 0
    as_json: bool = False


def run_demo(options: DemoOptions) -> int:
    """Run the demo. Returns 0 if every request was answered. Raises TokenmuxError if something is missing."""
    console = Console(stderr=True)
    models = prepare(options.cache, console)
    copy_bytes_per_s = measure_cpu(MonotonicClock()).copy_bytes_per_s
    n_devices = options.n_devices or default_devices(models, len(os.sched_getaffinity(0)), available_bytes())
    have = "the virtual GPU has" if n_devices == 1 else f"each of {n_devices} virtual GPUs has"
    console.print(
        f"{len(models.names)} models, {show_size(models.total_bytes)} together; {have} "
        f"{show_size(models.arena_bytes)}. A plain copy does {copy_bytes_per_s / 1e9:.1f} GB/s here."
    )
    report = asyncio.run(_serve_and_measure(options, models, n_devices, copy_bytes_per_s, console))
    console.print(
        f"\n[bold]{models.real[0]}[/bold] was asked: {report.question}\n[green]{report.answer}[/green]\n"
    )
    print_report(report, console)
    if options.as_json:
        print(json.dumps(report.as_json()), flush=True)
    return 0 if report.pool.n_failed == 0 else 1


def default_devices(models: DemoModels, n_cores: int, free_bytes: int | None) -> int:
    """Two devices if each has two cores and there is twice the memory that they need, otherwise one."""
    needed_bytes = models.host_bytes(TWO_DEVICES)
    fits = free_bytes is None or free_bytes >= MEMORY_MARGIN * needed_bytes
    return TWO_DEVICES if n_cores >= CORES_PER_DEVICE * TWO_DEVICES and fits else 1


async def _serve_and_measure(
    options: DemoOptions, models: DemoModels, n_devices: int, copy_bytes_per_s: float, console: Console
) -> DemoReport:
    config = models.pool_config(n_devices)
    with (
        tempfile.TemporaryDirectory(prefix="tokenmux-demo-") as folder,
        console.status("starting the server"),
    ):
        async with served(config, Path(folder)) as address, AsyncClient(address) as client:
            return await _measure(options, models, copy_bytes_per_s, console, client)


async def _measure(
    options: DemoOptions,
    models: DemoModels,
    copy_bytes_per_s: float,
    console: Console,
    client: AsyncClient,
) -> DemoReport:
    console.print("reading the models into host memory ...")
    await _until_in_memory(client)
    calibration = await calibrate(client, models.kinds())
    console.print(
        f"alone, a decode step takes {1e3 * calibration.slowest_step_s:.1f} ms for the slowest "
        "model: on time means "
        f"{calibration.ttft_s:.2f} s to the first token and {1e3 * calibration.tpot_s:.0f} ms for "
        "each one after"
    )
    stream = _plan(options, models, calibration)
    progress = StreamProgress(n_planned=len(stream))
    before = await client.pool.status()
    await _watch_while(
        client,
        View(progress, "tokenmux demo"),
        console,
        send_stream(client, stream, progress, calibration.ttft_s, calibration.tpot_s),
    )
    after = await client.pool.status()
    answer = await client.chat(models.real[0], [{"role": "user", "content": QUESTION}], max_tokens=48)
    return make_report(
        progress.outcomes, before, after, calibration, copy_bytes_per_s, QUESTION, answer.text.strip()
    )


async def _until_in_memory(client: AsyncClient) -> None:
    """Wait until the host cache has every model, so that calibration times steps and nothing else."""
    async for status in client.pool.watch():
        if all(model.residency in (Residency.HOST, Residency.RESIDENT) for model in status.models):
            return


def _plan(options: DemoOptions, models: DemoModels, calibration: Calibration) -> list[PlannedRequest]:
    """A stream with enough requests to keep this machine busy without swamping it."""
    mean_tokens = (SHORTEST + LONGEST) / 2
    real_share = 0.7
    request_s = real_share * mean_tokens * calibration.slowest_step_s
    n_requests = max(2 * len(models.names), int(TARGET_BUSY * options.duration_s / request_s))
    return plan_stream(list(models.names), n_requests, options.duration_s, options.seed)


async def _watch_while(
    client: AsyncClient, view: View, console: Console, work: Coroutine[None, None, None]
) -> None:
    """Show the pool's status until the work is done."""
    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(work)
    with Live(
        console=console, get_renderable=lambda: view.render(loop.time()), refresh_per_second=_REFRESH_PER_S
    ):

        async def watch() -> None:
            async for status in client.pool.watch():
                view.status = status

        watching = asyncio.ensure_future(watch())
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        await working
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
