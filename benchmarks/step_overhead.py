"""How long the node's one thread works per step: policy, bookkeeping and messages, without the model.

    python -m benchmarks.step_overhead [--quick]

The real node drives a virtual device, so that nothing but our own code runs: 50 live requests over 20 models,
about a third of them resident. Every reaction to an event (enter it, ask the policies for every free channel,
resolve launches, make the messages and encode them) is timed in processor time of the thread (on a shared
machine the wall clock shows other people's turns).

A step is one forward pass: between two steps of a burst the node only passes tokens on. Whatever it does
until a step ends is charged to that step, copies and arrivals too. Beside it stands the worst case: the
decisions alone, each with all that happened since the one before.
"""

import argparse
import time
from collections.abc import Callable, Sequence

from benchmarks import report
from tokenmux.core.effects import Effects
from tokenmux.core.facts import (
    FIRST_NODE,
    DeviceFacts,
    HostFacts,
    Image,
    ImageId,
    InstanceId,
    KvShape,
    ModelFacts,
    ModelId,
)
from tokenmux.core.request import Request, RequestId
from tokenmux.core.started import StartedStep
from tokenmux.messages.codec import COMPLETIONS, INSTRUCTIONS, REPORTS
from tokenmux.messages.commands import Register
from tokenmux.messages.completions import Completions, Drew, StepCompleted
from tokenmux.messages.launches import Instructions
from tokenmux.messages.reports import Finished, Report, Reports
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node.executor_port import ExecutorPort
from tokenmux.processes import garbage_collection
from tokenmux.scheduler.metrics.summary import percentile
from tokenmux.testing.virtual_node import NodeOnVirtualTime

MB = 10**6
N_MODELS, N_LIVE, N_OUTPUT = 20, 50, 200
DEVICE = DeviceFacts(
    name="imagined",
    arena_bytes=110 * MB,
    host_kv_bytes=200 * MB,
    copy_in_bytes_per_s=16e6,
    copy_out_bytes_per_s=16e6,
    memory_bytes_per_s=2e9,
    flops_per_s=4e11,
    step_overhead_s=0.004,
    slab_bytes=64 << 10,
)
"""A GPU of a thousandth of the bytes and speeds: the node allocates its memory for paged-out KV."""
HOST = HostFacts(cache_bytes=400 * MB, fetch_bytes_per_s=8e6)
SHAPE = KvShape(n_layers=1, n_kv_heads=1, head_dim=28, dtype_bytes=2, block_size=16)
TARGETS = {
    "policy_ms_p99": report.Target(
        source="policy and bookkeeping per step, 50 requests over 20 models", at_most=0.3
    )
}


class TimedNode(NodeOnVirtualTime):
    """The node on virtual time, with a clock around each of its reactions. A request that ends is followed
    by another."""

    def __init__(self) -> None:
        self._n_output: dict[RequestId, int] = {}
        self.per_step_s: list[float] = []
        self.per_decision_s: list[float] = []
        self.elsewhere_s = 0.0
        """Seconds within reactions that are not the node's."""
        self._since_step_s = self._since_decision_s = 0.0
        self._step_began = False
        super().__init__(NodeSetup((DeviceSetup(DEVICE),), HOST, DEVICE.host_kv_bytes), self._n_output)
        for i in range(N_MODELS):
            image = Image(ImageId(f"i{i}"), 14 * MB)
            self.send(Register(ModelFacts(ModelId(f"m{i}"), (image,), SHAPE, 8192, 7 * MB), path=""))
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

    def heard(self, index: InstanceId, completions: Completions) -> None:
        if any(isinstance(completion, Drew | StepCompleted) for completion in completions):
            self.per_step_s.append(self._since_step_s)
            self._since_step_s = 0.0
        encoded = COMPLETIONS.encode(completions)
        self.react(lambda: self.node.heard(index, COMPLETIONS.decode(encoded)))

    def emit(self, messages: list[Report]) -> None:
        REPORTS.encode(Reports(FIRST_NODE, messages))
        began = time.thread_time()
        for message in messages:
            if isinstance(message, Finished):
                self.submit()
        self.elsewhere_s += time.thread_time() - began

    def forget(self) -> None:
        """Forget the warm-up."""
        self.per_step_s.clear()
        self.per_decision_s.clear()

    def observe(self, index: int, at_s: float, effects: Effects) -> None:
        for effect in effects:
            self._step_began |= isinstance(effect, StartedStep)

    def __call__(  # type: ignore[override]
        self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int
    ) -> ExecutorPort:
        return _Untimed(super().__call__(index, device, host_kv, n_devices=n_devices), self)


class _Untimed:
    """A virtual executor, whose reckoning of durations is not the node's work."""

    def __init__(self, executor: ExecutorPort, body: TimedNode) -> None:
        self._executor = executor
        self._body = body

    def send(self, instructions: Instructions, descriptors: Sequence[int] = ()) -> None:
        INSTRUCTIONS.encode(instructions)
        began = time.thread_time()
        self._executor.send(instructions, descriptors)
        self._body.elsewhere_s += time.thread_time() - began

    def kill(self) -> None:
        self._executor.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a look: a fifth of the virtual time")
    quick = parser.parse_args().quick
    body = TimedNode()
    body.clock.run(until_s=20.0)
    garbage_collection.settle()  # as a node does when it starts
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
        f"Node and policy: {N_LIVE} live requests over {N_MODELS} models",
        ["per", "number", "median ms", "p80 ms", "p99 ms", "worst ms"],
        rows,
    )
    report.finish("step_overhead", metrics, TARGETS)


if __name__ == "__main__":
    main()
