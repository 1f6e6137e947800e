"""Simulates for `tokenmux plan` in several processes and shows the progress on the terminal."""

import multiprocessing
import os
import signal
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from threading import Thread

from rich.console import Console

from tokenmux.core.errors import ProcessFailed
from tokenmux.simulator.planner.capacity_plan import Point
from tokenmux.simulator.planner.plan_search import PlanSearch, ToldProgress, plan_here
from tokenmux.simulator.planner.simulated_job import Job, World, simulate_job

FEW_REQUESTS = 300
"""With fewer requests, starting processes takes longer than simulating in this one."""


def n_processes(asked: int | None, n_requests: int) -> int:
    """`asked`, if given; otherwise one per core that this process may use, or one if there are few
    requests."""
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if n_requests >= FEW_REQUESTS else 1


def plan_in_processes(planning: PlanSearch, asked: int | None, console: Console) -> None:
    """Simulate until the search is complete. The plan does not depend on the number of processes."""
    with console.status("planning") as status:

        def told(planning: PlanSearch, running: Collection[Job]) -> None:
            status.update(progress_line(planning, running))

        n = n_processes(asked, len(planning.world.arrivals))
        if n == 1:
            plan_here(planning, told)
        else:
            _plan_apart(planning, n, told)


def progress_line(planning: PlanSearch, running: Collection[Job]) -> str:
    """How many simulations are done, and which are running."""
    names = ", ".join(
        f"{job.policy} on {job.n_instances}" + (f" with twice the {job.relief}" if job.relief else "")
        for job in list(running)[:2]
    )
    more = f" and {len(running) - 2} more" if len(running) > 2 else ""
    return f"{len(planning.known)} pools simulated; now {names}{more}"


def _plan_apart(planning: PlanSearch, n: int, told: ToldProgress) -> None:
    # Not forked: if a server was asked, the client has threads, and these do not survive a fork.
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
        raise ProcessFailed(
            "a simulating process ended, most likely because memory ran out: try --processes 1, or a "
            "shorter trace"
        ) from error
    finally:
        # What they still simulate was a guess, or the search has failed: no one waits for it.
        for process in list((pool._processes or {}).values()):
            process.terminate()
        # Waited for: a pool that ends by itself while Python exits may print a traceback.
        pool.shutdown(cancel_futures=True)


_world: World | None = None


def _enter(world: World) -> None:
    """Prepare a simulating process: it leaves Ctrl-C to its parent and ends when that ends."""
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
