"""How long the engine's own thread works per step: policy, bookkeeping and messages, without the model.

    python -m benchmarks.step_overhead [--quick]

The real engine drives a virtual device, so that nothing but our own code runs: 50 live
requests over 20 models, about a third of them resident. Every reaction to an event (enter it, ask the policy
for every free channel, make the messages) is timed in processor time of the thread (on a shared machine the
wall clock shows other people's turns).

A step is one forward pass: between two steps of a burst the engine only passes tokens on. Whatever it does
until a step ends is charged to that step, copies and arrivals too. Beside it stands the worst case: the
decisions alone, each with all that happened since the one before.
"""

import argparse
import time
from collections.abc import Callable

from benchmarks import report
from tokenmux.core.effects import Effects
from tokenmux.core.facts import DeviceFacts, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.core.request import Request, RequestId
from tokenmux.core.roofline_cost import RooflineCost
from tokenmux.core.started import Started, StartedStep
from tokenmux.device.device_protocol import Device
from tokenmux.messages.commands import Register
from tokenmux.messages.reports import Finished, Report
from tokenmux.processes import garbage_collection
from tokenmux.scheduler.instance.instance import Instance
from tokenmux.scheduler.memory.host_cache import HostCache
from tokenmux.scheduler.metrics.summary import percentile
from tokenmux.scheduler.policy.slack import SlackPolicy
from tokenmux.testing.virtual_engine import HOST, EngineOnVirtualTime

GB = 10**9
N_MODELS, N_LIVE, N_OUTPUT = 20, 50, 200
DEVICE = DeviceFacts(
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
TARGETS = {
    "policy_ms_p99": report.Target(
        source="policy and bookkeeping per step, 50 requests over 20 models", at_most=0.3
    )
}


class TimedEngine(EngineOnVirtualTime):
    """The engine on virtual time, with a clock around each of its reactions. A request that ends is
    followed by another."""

    def __init__(self) -> None:
        self._n_output: dict[RequestId, int] = {}
        policy, cost = SlackPolicy(), RooflineCost(DEVICE, HOST)
        super().__init__(Instance(DEVICE, HostCache(400 * GB), policy, cost), self._n_output)
        self.per_step_s: list[float] = []
        self.per_decision_s: list[float] = []
        self.elsewhere_s = 0.0
        """Seconds within reactions that are not the engine's."""
        self._since_step_s = self._since_decision_s = 0.0
        self._step_began = False
        shape = KvShape(n_layers=28, n_kv_heads=8, head_dim=128, dtype_bytes=2, block_size=16)
        for i in range(N_MODELS):
            image = Image(ImageId(f"i{i}"), 14 * GB)
            self.send(Register(ModelFacts(ModelId(f"m{i}"), (image,), shape, 8192, 7 * GB), path=""))
        for _ in range(N_LIVE):
            self.submit()

    def submit(self) -> None:
        number = len(self._n_output)
        request = Request(
            RequestId(f"r{number}"),
            ModelId(f"m{number * 7 % N_MODELS}"),
            n_prompt=100 + number * 37 % 400,
            max_tokens=N_OUTPUT,
            arrival_s=self.clock.now_s(),
        )
        self._n_output[request.id] = N_OUTPUT
        self.submit_at(request)

    def react(self, call: Callable[[], None]) -> None:
        self.elsewhere_s = 0.0
        began = time.thread_time()
        super().react(call)
        seconds = time.thread_time() - began - self.elsewhere_s
        self._since_step_s += seconds
        self._since_decision_s += seconds
        if self._step_began:
            self.per_decision_s.append(self._since_decision_s)
            self._since_decision_s, self._step_began = 0.0, False

    def drawn(self, at_s: float, tokens: tuple[tuple[RequestId, int], ...]) -> None:
        self.per_step_s.append(self._since_step_s)
        self._since_step_s = 0.0
        super().drawn(at_s, tokens)

    def emit(self, messages: list[Report]) -> None:
        began = time.thread_time()
        for message in messages:
            if isinstance(message, Finished):
                self.submit()
        self.elsewhere_s += time.thread_time() - began

    def forget(self) -> None:
        """Forget the warm-up."""
        self.per_step_s.clear()
        self.per_decision_s.clear()

    def make_device(self) -> Device:
        return _Untimed(super().make_device(), self)

    def observe(self, at_s: float, effects: Effects) -> None:
        for effect in effects:
            self._step_began |= isinstance(effect, StartedStep)


class _Untimed(Device):
    """A virtual device, whose reckoning of durations is not the engine's work."""

    def __init__(self, device: Device, body: TimedEngine) -> None:
        self._device = device
        self._body = body

    def start(self, started: Started) -> None:
        began = time.thread_time()
        self._device.start(started)
        self._body.elsewhere_s += time.thread_time() - began

    def interrupt(self) -> None:
        self._device.interrupt()

    def supersede(self, operation: int) -> None:
        self._device.supersede(operation)

    def resize(self, arena_bytes: int) -> None:
        self._device.resize(arena_bytes)

    def close(self) -> None:
        self._device.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a look: a fifth of the virtual time")
    quick = parser.parse_args().quick
    body = TimedEngine()
    body.clock.run(until_s=20.0)
    garbage_collection.settle()  # as a worker does once its models are built
    body.forget()
    body.clock.run(until_s=60.0 if quick else 220.0)
    rows: list[list[object]] = []
    metrics: dict[str, float] = {}
    for what, name, seconds in (
        ("step", "policy_ms", body.per_step_s),
        ("decision", "decision_ms", body.per_decision_s),
    ):
        ordered = sorted(1e3 * s for s in seconds)
        metrics |= report.spread(name, ordered)
        metrics[f"{name}_p99"] = percentile(ordered, 0.99)
        metrics[f"{what}s"] = float(len(ordered))
        rows.append(
            [what, len(ordered), metrics[name], metrics[f"{name}_p80"], metrics[f"{name}_p99"], ordered[-1]]
        )
    report.table(
        f"Engine and policy: {N_LIVE} live requests over {N_MODELS} models",
        ["per", "number", "median ms", "p80 ms", "p99 ms", "worst ms"],
        rows,
    )
    report.finish("step_overhead", metrics, TARGETS)


if __name__ == "__main__":
    main()
