"""How long the engine's own thread works per step: policy, bookkeeping and messages, without the model.

    python -m benchmarks.step_overhead [--quick]

The real engine drives the null device on virtual time, so that nothing but our own code runs: 50 live requests over 20 models,
about a third of them resident. Every reaction to an event (enter it, ask the policy for every free channel, make the messages) is
timed in processor time of the thread (on a shared machine the wall clock shows other people's turns), and all reactions up to the start of a step are charged to that step. A burst of repeated decode steps is
charged as one step here, so the figure is the worst case; the cost per drawn token stands beside it.
"""

import argparse
import time
from collections.abc import Callable

from benchmarks import report
from tokenmux.engine.core.cost import RooflineCost
from tokenmux.engine.core.facts import DeviceFacts, HostFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.engine.core.message import Finished, FromWorker, Register, Sampling, Submit
from tokenmux.engine.core.plan import AtOnce, Operation, Step
from tokenmux.engine.core.request import Request, RequestId
from tokenmux.engine.device.interface import Completion
from tokenmux.engine.device.null import NullDevice, VirtualClock
from tokenmux.engine.instance.instance import Instance
from tokenmux.engine.instance.started import Started
from tokenmux.engine.memory.host_cache import HostCache
from tokenmux.engine.policy.slack import SlackPolicy
from tokenmux.engine.runtime import collector
from tokenmux.engine.runtime.engine import Engine

GB = 10**9
N_MODELS, N_LIVE, N_OUTPUT = 20, 50, 200
TARGETS = {
    "policy_ms_p99": report.Target(
        source="policy and bookkeeping per step, 50 requests over 20 models", at_most=0.3
    )
}


class NoWeights:
    """The null device computes nothing, so there is nothing to bind."""

    def add(self, facts: ModelFacts, path: str) -> None: ...
    def remove(self, model: ModelId) -> None: ...
    def bind(self, model: ModelFacts) -> None: ...
    def unbind(self, model: ModelId) -> None: ...


class TimedEngine:
    """The engine on virtual time, with a wall clock around each of its reactions."""

    def __init__(self) -> None:
        device = DeviceFacts(
            name="imagined",
            arena_bytes=110 * GB,
            host_kv_bytes=200 * GB,
            copy_in_bytes_per_s=16e9,
            copy_out_bytes_per_s=16e9,
            memory_bytes_per_s=2e12,
            flops_per_s=4e14,
            step_overhead_s=0.004,
            slab_bytes=64 << 20,
        )
        host = HostFacts(cache_bytes=400 * GB, fetch_bytes_per_s=50e9)
        self.clock = VirtualClock()
        self.instance = Instance(
            device,
            HostCache(host.cache_bytes),
            SlackPolicy(),
            RooflineCost(device, host),
            on_decision=self._decided,
        )
        self.engine = Engine(self.instance, self.clock, NoWeights(), self._said, {})
        self._device = NullDevice(self.instance, RooflineCost(device, host), self.clock, self, self._left)
        self.engine.attach(self)
        self.per_step_s: list[float] = []
        self.n_tokens = 0
        self._pending_s = 0.0
        self._step_began = False
        self._n_submitted = 0
        shape = KvShape(n_layers=28, n_kv_heads=8, head_dim=128, dtype_bytes=2, block_size=16)
        for i in range(N_MODELS):
            image = Image(ImageId(f"i{i}"), 14 * GB)
            self.react(
                lambda image=image, i=i: self.engine.receive(
                    Register(ModelFacts(ModelId(f"m{i}"), (image,), shape, 8192, 7 * GB), path="")
                )
            )

    def react(self, call: Callable[[], None]) -> None:
        began = time.thread_time()
        call()
        self.engine.pump()
        self._pending_s += time.thread_time() - began
        if self._step_began:
            self.per_step_s.append(self._pending_s)
            self._pending_s, self._step_began = 0.0, False

    def submit(self) -> None:
        number = self._n_submitted
        self._n_submitted += 1
        request = Request(
            RequestId(f"r{number}"),
            ModelId(f"m{number * 7 % N_MODELS}"),
            n_prompt=100 + number * 37 % 400,
            max_tokens=N_OUTPUT,
            arrival_s=self.clock.now_s(),
        )
        submit = Submit(request, (0,) * request.n_prompt, Sampling())
        self.react(lambda: self.engine.receive(submit))

    # the engine's device: the null device, whose own reckoning of durations is not the engine's work
    def start(self, started: Started) -> None:
        began = time.thread_time()
        self._device.start(started)
        self._pending_s -= time.thread_time() - began

    def interrupt(self) -> None:
        self._device.interrupt()

    def close(self) -> None:
        self._device.close()

    # the device's `Post`
    def done(self, completion: Completion) -> None:
        self.react(lambda: self.engine.done(completion))

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        raise AssertionError("the null device draws nothing")

    def progress(self, operation: int, share: float) -> None:
        raise AssertionError("the null device reports no progress")

    def broken(self, operation: int, error: BaseException) -> None:
        raise error

    def _decided(self, _at_s: float, decided: Operation | AtOnce) -> None:
        self._step_began |= isinstance(decided, Step)

    def _said(self, messages: list[FromWorker]) -> None:
        """A request that ends is followed by another, so that the number of live ones stays."""
        for message in messages:
            if isinstance(message, Finished):
                self.n_tokens += N_OUTPUT
                self.clock.call_at(self.clock.now_s(), self.submit)

    def _left(self, request: RequestId) -> int:
        return N_OUTPUT - self.instance.requests[request].n_drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a look: a fifth of the virtual time")
    quick = parser.parse_args().quick
    body = TimedEngine()
    for _ in range(N_LIVE):
        body.submit()
    body.clock.run(until_s=20.0)
    collector.settle()  # as a worker does once its models are built
    body.per_step_s.clear()
    body.n_tokens = 0
    body.clock.run(until_s=60.0 if quick else 220.0)
    ordered = sorted(1e3 * seconds for seconds in body.per_step_s)
    metrics = {
        **report.spread("policy_ms", ordered),
        "policy_ms_p99": ordered[int(0.99 * (len(ordered) - 1))],
        "policy_us_per_token": 1e6 * sum(body.per_step_s) / max(1, body.n_tokens),
        "steps": float(len(ordered)),
    }
    report.table(
        f"engine and policy per step: {N_LIVE} live requests over {N_MODELS} models",
        ["steps", "median ms", "p80 ms", "p99 ms", "us per token"],
        [
            [
                len(ordered),
                metrics["policy_ms"],
                metrics["policy_ms_p80"],
                metrics["policy_ms_p99"],
                metrics["policy_us_per_token"],
            ]
        ],
    )
    report.finish("step_overhead", metrics, TARGETS)


if __name__ == "__main__":
    main()
