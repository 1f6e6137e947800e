"""`tokenmux plan`, the part that is not pure: several processes, progress on the terminal, and what a running server knows."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from threading import Thread

from rich.console import Console

from tokenmux.client import Client, ModelSizes, RecordedRequest
from tokenmux.core.errors import ConfigError, NotFound, WorkerFailed
from tokenmux.core.facts import BLOCK_TOKENS, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.simulator.planner.planner import Job, PlanSearch, Point, World, plan_here, simulate_job
from tokenmux.workload.trace import Trace, TraceRequest

FEW_REQUESTS = 300
"""Below so many, starting other processes takes longer than simulating."""


def n_processes(asked: int | None, n_requests: int) -> int:
    """As many as asked for; else one for each processor that this process may use, if there is enough to do."""
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if n_requests >= FEW_REQUESTS else 1


def plan_in_processes(planning: PlanSearch, asked: int | None, console: Console) -> None:
    """Simulate until the planning is complete. The plan does not depend on the number of processes."""
    with console.status("planning") as status:

        def told(planning: PlanSearch, running: Collection[Job]) -> None:
            status.update(progress_line(planning, running))

        n = n_processes(asked, len(planning.world.arrivals))
        if n == 1:
            plan_here(planning, told)
        else:
            _plan_apart(planning, n, told)


def progress_line(planning: PlanSearch, running: Collection[Job]) -> str:
    """How many simulations are done, and what is under way."""
    names = ", ".join(
        f"{job.policy} on {job.n_instances}" + (f" with twice the {job.relief}" if job.relief else "")
        for job in list(running)[:2]
    )
    more = f" and {len(running) - 2} more" if len(running) > 2 else ""
    return f"{len(planning.known)} pools simulated; now {names}{more}"


def _plan_apart(planning: PlanSearch, n: int, told: Callable[[PlanSearch, Collection[Job]], None]) -> None:
    # Not forked: the client's threads, where a server was asked, do not survive a fork.
    context = multiprocessing.get_context("spawn")
    running: dict[Future[Point | None], Job] = {}
    pool = ProcessPoolExecutor(n, context, initializer=_enter, initargs=(planning.world,))
    try:
        while needed := planning.needed():
            under_way = set(running.values())
            wanted = [job for job in (*needed, *planning.guesses()) if job not in under_way]
            for job in wanted[: n - len(running)]:
                running[pool.submit(_run, job)] = job
            told(planning, running.values())
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                planning.tell(running.pop(future), future.result())
    except BrokenProcessPool as error:
        raise WorkerFailed(
            "a simulating process ended, most likely for want of memory: try --processes 1, or a shorter trace"
        ) from error
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        # What they still simulate was only guessed, or nobody waits for it any more.
        for process in processes:
            process.terminate()


_world: World | None = None


def _enter(world: World) -> None:
    """In a simulating process, before its first job. Ctrl-C is its parent's business; without a parent it ends."""
    global _world
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    _world = world


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _run(job: Job) -> Point | None:
    assert _world is not None
    return simulate_job(_world, job)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a running server knows: its models, and the requests that it has seen."""

    models: dict[ModelId, ModelFacts]
    trace: Trace


def ask_server(client: Client, last_s: float = 0.0, with_traffic: bool = True) -> Seen:
    """Catalogue and, if asked for, recorded traffic. Raises CallFailed, ConfigError for a server without models, NotFound without traffic."""
    models = {ModelId(sizes.name): facts_of(sizes) for sizes in client.planning.catalogue()}
    if not models:
        raise ConfigError("this server has no models: register one first")
    if not with_traffic:
        return Seen(models, [])
    lines = [trace_line(request) for request in client.planning.recorded_traffic(last_s)]
    if not lines:
        raise NotFound(
            "this server has recorded no request yet: send it some, wait, or plan with --trace or --rate and the names of models"
        )
    # Models that were removed since are no longer in the catalogue.
    return Seen(models, [line for line in lines if line.model in models])


def facts_of(sizes: ModelSizes) -> ModelFacts:
    return ModelFacts(
        ModelId(sizes.name),
        (Image(ImageId(f"{sizes.name}/weights"), sizes.weight_bytes),),
        KvShape(sizes.n_layers, sizes.n_kv_heads, sizes.head_dim, sizes.dtype_bytes, BLOCK_TOKENS),
        sizes.max_context,
        sizes.n_parameters,
        sizes.vocab_size,
    )


def trace_line(request: RecordedRequest) -> TraceRequest:
    return TraceRequest(
        request.arrival_s,
        request.model,
        request.input_tokens,
        request.output_tokens,
        request.tenant,
        request.ttft_s,
        request.tpot_s,
        request.weight,
    )
