"""How well the simulator predicts real runs: the demo's models and traffic on the virtual GPU, measured and
then simulated.

Streams of the demo's traffic (each with another seed) go through a real node, with real weights, on this
machine; some arrive as fast as the demo's, others twice as fast, so that some tokens are late. The simulator
then replays each of them with the step and copy times of all the others, since the speed of a shared machine
drifts. Of the stream itself it knows when requests arrived and how long they were, which models were on the
device when it began, and what the node's cost model had learned by then. The report also has the
interference of copies with steps, and how fast the node's own cost model converges, starting from a
roofline.

    python -m benchmarks.calibration [--quick] [--cache FOLDER]

Takes a quarter of an hour. Other work on the machine that comes and goes during a run cannot be predicted.
"""

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.driven_node import DrivenNode, run_as_an_executor_would
from benchmarks.report import Target, finish, table
from tokenmux.core.cost import CostModel
from tokenmux.core.effects import Effects, OperationEnded, RequestEnded, StepEnded
from tokenmux.core.event import ModelAdded, ModelWanted
from tokenmux.core.facts import DeviceFacts, HostFacts, ModelFacts, ModelId
from tokenmux.core.record import RequestRecord
from tokenmux.core.request import Request, RequestId, ServiceLevel
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.sampling import Sampling
from tokenmux.core.started import StartedActivation
from tokenmux.demo.load import plan_stream
from tokenmux.demo.prepared_models import DemoModels, prepare
from tokenmux.demo.service_level import FIRST_TOKENS, TURNS
from tokenmux.executor.calibrate import measure_cpu
from tokenmux.messages.commands import Submit
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.processes.monotonic_clock import MonotonicClock
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.metrics.summary import Summary, summarise
from tokenmux.scheduler.policy.registry import make_policy
from tokenmux.server.config import PoolConfig
from tokenmux.server.pool_setup import MeasuredDevice, node_setup
from tokenmux.simulator.measured import MeasuredCost, fit_cost, iteration_of
from tokenmux.simulator.simulator import Simulator
from tokenmux.workload.trace import Arrival

TTFT_ERROR = "ttft_p50_error"
ON_TIME_ERROR = "on_time_error_points"
SOURCE = "the project's milestone for the scheduler: TTFT p50 within 15%, tokens on time within 3 points"
TARGETS = {
    TTFT_ERROR: Target(SOURCE, at_most=0.15),
    ON_TIME_ERROR: Target(SOURCE, at_most=3.0),
}
STEPS_SEEN = (0, 1, 2, 5, 10, 20, 50)
LOADS = {"demo": 1.0, "dense": 2.0}
"""Kinds of streams, and how many times the demo's request rate they have."""

STREAMS = ("demo", "dense", "demo", "dense", "demo")

REPLAYS = 9
JITTER_S = 0.01
"""Which of two models goes first can depend on a millisecond, and with it everything that follows, in a
real run as in a simulated one. So each stream is simulated several times, its arrivals moved by up to this
much, and the prediction is taken over all of them."""

GAP_S = 3.0
"""Pause between the parts of a run, so that one does not affect the next."""


@dataclass(slots=True)
class Run:
    """One stream through the real node. Times are on the node's clock."""

    arrivals: list[Arrival] = field(default_factory=list)
    records: list[RequestRecord] = field(default_factory=list)
    completed: list[OperationEnded] = field(default_factory=list)
    began_with: tuple[ModelId, ...] = ()
    """Models on the device, the least recently used first."""
    cost: CostModel | None = None
    """The node's own cost model when the stream began."""

    def __add__(self, other: "Run") -> "Run":
        return Run(
            self.arrivals + other.arrivals, self.records + other.records, self.completed + other.completed
        )

    def note(self, effects: Effects) -> None:
        """Note what ended."""
        self.completed += [effect for effect in effects if isinstance(effect, OperationEnded)]
        self.records += [effect.record for effect in effects if isinstance(effect, RequestEnded)]

    def summary(self) -> Summary:
        return summarise(self.records)

    def n_swaps(self) -> int:
        return sum(isinstance(ended.started, StartedActivation) for ended in self.completed)

    def compute_s(self) -> float:
        return sum(e.done.at_s - e.started.at_s for e in self.completed if isinstance(e, StepEnded))


class RealNode:
    """A node with one device, with the demo's models in its host cache."""

    def __init__(self, models: DemoModels, device: DeviceFacts, host: HostFacts) -> None:
        self.driven = DrivenNode(device, host)
        self.driven.node.observers.append(lambda _index, _at_s, effects: self.run.note(effects))
        self.run = Run()
        self._n_submitted = 0
        catalogue = Catalogue(models.root)
        for facts in models.facts:
            self.driven.register(catalogue.stored.get(facts.id))

    def send(
        self, stream: Sequence[tuple[float, ModelId, tuple[int, ...], int]], service: ServiceLevel
    ) -> Run:
        """Submit `(at_s, model, prompt, n_output)` at their times, and serve until all are done."""
        instance, clock = self.driven.instance, self.driven.clock
        resident = sorted(instance.resident_models.values(), key=lambda model: model.last_used_s)
        run = self.run = Run(
            began_with=tuple(model.facts.id for model in resident), cost=copy.deepcopy(instance.cost)
        )
        began_s = clock.now_s()
        for at_s, model, prompt, n_output in stream:
            self.driven.turns_until(began_s + at_s)
            request = Request(
                RequestId(f"r{self._n_submitted}"), model, len(prompt), n_output, clock.now_s(), service
            )
            self._n_submitted += 1
            run.arrivals.append(Arrival(request, n_output))
            sampling = Sampling(temperature=0.7, top_p=0.9, seed=self._n_submitted)
            self.driven.tell(Submit(request, prompt, sampling))
        while len(run.records) < len(stream):
            self.driven.turn()
        self.driven.said.clear()
        return run


def predicted(
    run: Run, truth: MeasuredCost, device: DeviceFacts, host: HostFacts, models: Sequence[ModelFacts]
) -> Run:
    """The simulator's prediction of a stream: `REPLAYS` runs in one."""
    moves = np.random.default_rng(0).uniform(-JITTER_S, JITTER_S, (REPLAYS, len(run.arrivals)))
    replays = []
    for moved in moves:
        arrivals = [
            replace(a, request=replace(a.request, arrival_s=a.request.arrival_s + float(by_s)))
            for a, by_s in zip(run.arrivals, moved, strict=True)
        ]
        arrivals.sort(key=lambda arrival: arrival.request.arrival_s)
        replays.append(simulated(replace(run, arrivals=arrivals), truth, device, host, models))
    return sum(replays, Run())


def simulated(
    run: Run, truth: MeasuredCost, device: DeviceFacts, host: HostFacts, models: Sequence[ModelFacts]
) -> Run:
    """The same arrivals on virtual time, from the state in which the real node began."""
    cache = HostCache(host.cache_bytes)
    for facts in models:
        cache.begin_fetch(facts.images)
        cache.end_fetch(facts.images, True)
    result = Run(arrivals=run.arrivals)
    cost = copy.deepcopy(run.cost) or RooflineCost(device, host)
    instance = Instance(device, cache, make_policy("slack"), cost)
    simulator = Simulator(
        [instance],
        truth,
        models={facts.id: facts for facts in models},
        on_effects=lambda _index, _at_s, effects: result.note(effects),
    )
    for facts in models:
        simulator.apply(0, ModelAdded(0.0, facts))
    for model in run.began_with:
        simulator.apply(0, ModelWanted(simulator.now_s, model, wanted=True))
        simulator.run([])
    result.completed.clear()
    later_s = simulator.now_s + GAP_S - run.arrivals[0].request.arrival_s
    simulator.run(
        [
            replace(a, request=replace(a.request, arrival_s=a.request.arrival_s + later_s))
            for a in run.arrivals
        ]
    )
    return result


def convergence(
    completed: Sequence[OperationEnded], device: DeviceFacts, host: HostFacts
) -> dict[int, float]:
    """Median relative error of the estimate of a model's next step, by the number of such steps seen
    before."""
    cost = RooflineCost(device, host)
    seen: dict[tuple[ModelId, bool], int] = defaultdict(int)
    errors: dict[int, list[float]] = defaultdict(list)
    for ended in completed:
        if isinstance(ended, StepEnded):
            model, work, seconds = iteration_of(ended)
            kind = (model.id, work.prefill_tokens > 0)
            errors[max(n for n in STEPS_SEEN if n <= seen[kind])].append(
                abs(cost.step_s(model, work) / seconds - 1)
            )
            cost.observe_step(model, work, seconds)
            seen[kind] += 1
    return {n: statistics.median(errors[n]) for n in STEPS_SEEN if errors[n]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter streams")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "tokenmux")
    options = parser.parse_args(arguments)
    if arguments is None:
        run_as_an_executor_would("benchmarks.calibration")
    duration_s, loads = (20.0, STREAMS[:3]) if options.quick else (120.0, STREAMS)

    console = Console(stderr=True)
    models = prepare(options.cache, console)
    config = PoolConfig.model_validate(models.pool_config(), context=models.root)
    setup = node_setup(config, [MeasuredDevice(config.device, measure_cpu(MonotonicClock()))])
    device, host = setup.devices[0].facts, setup.host
    streams = Streams(models)
    runs: list[Run] = []
    node = RealNode(models, device, host)
    with closing(node.driven):
        console.print("all models in memory; timing one request alone")
        alone = node.send([(0.0, ModelId(models.real[0]), (1,) * 8, 32)], ServiceLevel())
        step_s = alone.records[0].tpot_s or 0.0
        service = ServiceLevel(FIRST_TOKENS * TURNS * step_s, TURNS * step_s)
        for seed, load in enumerate(loads):
            rate = LOADS[load] * streams.rate(step_s)
            time.sleep(GAP_S)
            console.print(f"{load} {seed}: {duration_s:.0f} s, {rate:.1f} requests/s")
            runs.append(node.send(streams.plan(rate, duration_s, seed), service))
    pairs: dict[str, list[tuple[Run, Run]]] = {load: [] for load in LOADS}
    for run, load in zip(runs, loads, strict=True):
        truth = fit_cost(sum((other for other in runs if other is not run), Run()).completed)
        pairs[load].append((run, predicted(run, truth, device, host, models.facts)))
    seen = sum(runs, Run()).completed
    report(pairs, fit_cost(seen), convergence(seen, device, host))


class Streams:
    """The demo's traffic as token ids: its texts through each model's own tokenizer."""

    busy = 0.6
    """Share of the time that decode steps would take if every request were alone, as in the demo."""
    mean_tokens = 40
    real_share = 0.7

    def __init__(self, models: DemoModels) -> None:
        self._models = models
        catalogue = Catalogue(models.root)
        self._tokenizers = {name: catalogue.stored.get(name).encoder() for name in models.names}

    def rate(self, step_s: float) -> float:
        """Requests per second that keep the machine busy without swamping it."""
        return self.busy / (self.real_share * self.mean_tokens * step_s)

    def plan(
        self, rate: float, duration_s: float, seed: int
    ) -> list[tuple[float, ModelId, tuple[int, ...], int]]:
        n_requests = max(2 * len(self._models.names), int(rate * duration_s))
        planned = plan_stream(list(self._models.names), n_requests, duration_s, seed)
        return [
            (p.at_s, ModelId(p.model), self._encode(p.model, p.prompt, p.is_chat), p.n_tokens)
            for p in planned
        ]

    def _encode(self, model: str, prompt: str, is_chat: bool) -> tuple[int, ...]:
        tokenizer = self._tokenizers[model]
        if is_chat:
            return tuple(tokenizer.encode_chat([{"role": "user", "content": prompt}]))
        return tuple(tokenizer.encode(prompt))


def report(pairs: dict[str, list[tuple[Run, Run]]], truth: MeasuredCost, errors: dict[int, float]) -> None:
    """Print the report. `pairs` holds, for each kind of stream, what was measured and what was simulated."""
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    for load, streams in pairs.items():
        for number, (run, guess) in enumerate(streams):
            rows += _compared(f"{load} {number}", run, guess)
        whole = [sum(runs, Run()) for runs in zip(*streams, strict=True)]
        rows += _compared(f"{load}, all", *whole)
        real, sim = (run.summary() for run in whole)
        prefix = "" if load == "demo" else f"{load}_"
        metrics |= {
            f"{prefix}{TTFT_ERROR}": abs(sim.ttft_p50_s / real.ttft_p50_s - 1),
            f"{prefix}{ON_TIME_ERROR}": 100 * abs(sim.tokens_on_time - real.tokens_on_time),
            f"{prefix}ttft_p99_error": abs(sim.ttft_p99_s / real.ttft_p99_s - 1),
            f"{prefix}swaps_error": abs(whole[1].n_swaps() / REPLAYS / whole[0].n_swaps() - 1),
            f"{prefix}requests": float(len(whole[0].records)),
        }
    table(
        "real runs, and the simulator's predictions of them",
        ["stream", "", "measured", "simulated", "error"],
        rows,
    )
    table(
        "the node's own cost model: error of its next estimate of a step (median)",
        ["steps of that kind seen", "error"],
        [[f"{n} or more", error] for n, error in errors.items()],
    )
    print(
        f"beside a copy, a step takes {truth.interference:.2f} times as long; turnaround "
        f"{1e3 * truth.turnaround_s:.2f} ms"
    )
    metrics["interference"] = truth.interference
    metrics |= {f"cost_error_after_{n}": error for n, error in errors.items()}
    finish("calibration", metrics, TARGETS)


def _compared(name: str, run: Run, guess: Run) -> list[list[object]]:
    real, sim = run.summary(), guess.summary()
    figures = (
        ("requests", float(len(run.records)), len(guess.records) / REPLAYS),
        ("tokens on time", real.tokens_on_time, sim.tokens_on_time),
        ("requests fully on time", real.requests_on_time, sim.requests_on_time),
        ("TTFT p50, s", real.ttft_p50_s, sim.ttft_p50_s),
        ("TTFT p99, s", real.ttft_p99_s, sim.ttft_p99_s),
        ("TPOT p50, s", real.tpot_p50_s, sim.tpot_p50_s),
        ("swaps", float(run.n_swaps()), guess.n_swaps() / REPLAYS),
        ("compute, s", run.compute_s(), guess.compute_s() / REPLAYS),
    )
    return [[name, label, a, b, b / a - 1 if a else 0.0] for label, a, b in figures]


if __name__ == "__main__":
    main()
