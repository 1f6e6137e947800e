"""A process of a node on virtual time: the real `Node`, in a double of its loop, over doubles of executors.

The front sees it as `tokenmux.server.nodes.node_protocol.Node`. It may be killed or stopped at any
time; then what is under way in both directions is lost, and its executors die with it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from tests.chaos.executor_double import Chances, ExecutorDouble, NodeMemory
from tests.chaos.links import Link
from tests.chaos.memories import Memory
from tests.chaos.virtual_loop import VirtualLoop
from tokenmux.core.errors import ProcessFailed
from tokenmux.core.facts import FIRST_NODE, InstanceId
from tokenmux.messages.commands import Order
from tokenmux.messages.completions import ExecutorReport
from tokenmux.messages.reports import Alive, Broken, Report, Reports
from tokenmux.messages.setups import DeviceSetup, NodeSetup
from tokenmux.node.node import Node
from tokenmux.processes.restarts import RestartLimits

BEAT_S = 1.0


class NodeDouble:
    """See the module. `post` reaches the front."""

    def __init__(
        self,
        loop: VirtualLoop,
        rng: Random,
        chances: Chances,
        setup: NodeSetup,
        limits: RestartLimits,
        post: Callable[[Reports], None],
    ) -> None:
        self.node: Node | None = None
        self.is_dead = False
        self.is_stopped = False
        self.executors: dict[InstanceId, ExecutorDouble] = {}
        self.told: Counter[str] = Counter()
        """How many instructions of each kind its executors were sent."""
        self.memory = NodeMemory(Memory(setup.host_kv_bytes))
        self._loop = loop
        self._rng = rng
        self._chances = chances
        self._setup = setup
        self._limits = limits
        self._post = post
        self._to_front: Link[Sequence[Report]] = Link(
            loop, rng, chances.message_s, lambda reports: post(Reports(FIRST_NODE, reports))
        )
        self._from_front: Link[Order] = Link(loop, rng, chances.message_s, self._received)
        self._events: list[tuple[int, Callable[[], None]]] = []
        """What the loop has to handle at its next turn; executors come before the front."""
        self._awake = False
        self._due_s: float | None = None
        loop.call_later(0.1 * rng.random(), self._start)

    # ── as the front sees it ────────────────────────────────────────────────────────────────────────────────

    def send(self, order: Order) -> None:
        if self.is_dead:
            raise ProcessFailed("the node is gone")
        self._from_front.send(order)

    def kill(self) -> None:
        """As SIGKILL: the front hears some of what had been said, then of the end."""
        if not self.is_dead:
            self._die()
            self._loop.call_later(0.05 * self._rng.random(), self._gone, "the node ended with status -9")

    def close(self) -> None:
        if not self.is_dead:
            self._die()
        self._to_front.cut()

    # ── as the monkey sees it ───────────────────────────────────────────────────────────────────────────────

    def stop(self) -> None:
        self.is_stopped = True

    def go_on(self) -> None:
        self.is_stopped = False
        self._wake()

    # ── its life ────────────────────────────────────────────────────────────────────────────────────────────

    def now_s(self) -> float:
        """The node's clock."""
        return self._loop.time()

    def _start(self) -> None:
        if self.is_dead:
            return
        self._to_front.send([Alive(1.0)])
        self.node = Node(self._setup, self, self, self._emit, self._limits)
        self.node.beat()
        self.node.start()
        self._loop.call_later(BEAT_S, self._beat)
        self._wake()

    def _die(self) -> None:
        self.is_dead = True
        self._from_front.cut()
        for executor in list(self.executors.values()):
            executor.vanish()
        if self.node is not None:
            self.node.close()

    def _gone(self, detail: str) -> None:
        self._to_front.end()
        self._post(Reports(FIRST_NODE, [Broken(detail)]))

    def _emit(self, reports: list[Report]) -> None:
        self._to_front.send(tuple(reports))

    def _received(self, order: Order) -> None:
        self._handle(1, lambda: self._node().receive(order))

    def _beat(self) -> None:
        if not self.is_dead:
            self._handle(2, lambda: self._node().beat())
            self._loop.call_later(BEAT_S, self._beat)

    def _node(self) -> Node:
        assert self.node is not None
        return self.node

    def _handle(self, rank: int, call: Callable[[], None]) -> None:
        self._events.append((rank, call))
        self._wake()

    def _wake(self) -> None:
        if not self._awake and not self.is_dead:
            self._awake = True
            self._loop.call_later(0.002 * self._rng.random() ** 4, self._turn)

    def _turn(self) -> None:
        self._awake = False
        if self.is_dead or self.is_stopped or self.node is None:
            return
        events, self._events = self._events, []
        for _, call in sorted(events, key=lambda event: event[0]):
            call()
            if self.is_dead:
                return
        self.node.pump()
        if self.node.stopped:
            raise AssertionError(f"the node has stopped by itself: {self._to_front.newest}")
        due_s = self.node.next_due_s
        if due_s is not None and due_s != self._due_s:
            self._due_s = due_s
            self._loop.call_at(max(due_s, self._loop.time()), self._due, due_s)

    def _due(self, due_s: float) -> None:
        if self._due_s == due_s:
            self._due_s = None
            self._wake()

    # ── as the node sees it: `tokenmux.node.executor_port.ExecutorFactory` ──────────────────────────────────

    def prepare(self, *, n_devices: int, is_quiet: bool) -> None:
        """There is nothing to prepare."""

    def __call__(
        self, index: InstanceId, device: DeviceSetup, host_kv: int, *, n_devices: int
    ) -> ExecutorDouble:
        if self._rng.random() < 0.01:
            raise OSError("no more processes")
        executor = ExecutorDouble(
            self._loop, self._rng, self._chances, index, device, self.memory, self._heard, self._ended
        )
        executor.told = self.told
        self.executors[index] = executor
        return executor

    def _heard(self, executor: ExecutorDouble, completions: tuple[ExecutorReport, ...]) -> None:
        self._handle(0, lambda: self._node().heard(executor.index, completions))

    def _ended(self, executor: ExecutorDouble) -> None:
        if self.executors.get(executor.index) is executor:
            del self.executors[executor.index]
        self._handle(0, lambda: self._node().ended(executor.index, "its executor ended by signal 9"))
