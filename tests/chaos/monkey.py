"""What happens to a pool besides requests: processes die and hang, operators change devices and models."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tests.server.front.asking import registered
from tests.server.scripted_models import FakeEntry
from tokenmux.core.errors import ErrorCode, TokenmuxError
from tokenmux.server.front.device_source import WantedDevice

if TYPE_CHECKING:  # the world has its monkey
    from tests.chaos.world import World

SLAB = 512


class Monkey:
    """Plays with a world, as its seed says."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = world.rng
        self._tasks: set[asyncio.Task[None]] = set()
        mischief = (
            (self._kill_executor, 6),
            (self._stop_executor, 2),
            (self._kill_node, 2),
            (self._stop_node, 1),
            (self._drain, 3),
            (self._undrain, 2),
            (self._add, 2),
            (self._remove, 2),
            (self._resize, 3),
            (self._unregister, 1),
            (self._register, 2),
            (self._load, 2),
            (self._unload, 2),
            (self._pin, 2),
        )
        # Each world has a taste of its own, so that some are about few things.
        kept = [each for each in mischief if self._rng.random() < 0.6] or list(mischief)
        self._mischief = [call for call, _ in kept]
        self._weights = [weight for _, weight in kept]

    async def play(self) -> None:
        """Do mischief until the world's horizon."""
        rng, world = self._rng, self._world
        pause_s = world.horizon_s / rng.choice((2, 6, 15, 40))
        until_s = world.loop.time() + world.horizon_s
        while world.loop.time() < until_s:
            await asyncio.sleep(2 * rng.random() * pause_s)
            rng.choices(self._mischief, self._weights)[0]()

    async def finish(self, patience_s: float) -> None:
        """Wait until every operator has an answer, and set going what is stopped."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=patience_s)
            assert not late, f"operators never hear: {[task.get_name() for task in late]}"
        for task in self._tasks:
            task.result()
        for executor in list(self._world.node.executors.values()):
            executor.go_on()
        self._world.node.go_on()

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────

    def _kill_executor(self) -> None:
        executors = self._world.node.executors
        if executors:
            index = self._rng.choice(list(executors))
            self._world.note(f"kill executor {index}")
            executors[index].kill()

    def _stop_executor(self) -> None:
        executors = self._world.node.executors
        if executors:
            index = self._rng.choice(list(executors))
            seconds = self._rng.choice((1.0, 8.0, 25.0))
            self._world.note(f"stop executor {index} for {seconds:g} s")
            executors[index].stop()
            self._world.loop.call_later(seconds, executors[index].go_on)

    def _kill_node(self) -> None:
        self._world.note("kill the node")
        self._world.node.kill()

    def _stop_node(self) -> None:
        node, seconds = self._world.node, self._rng.choice((1.0, 5.0, 20.0))
        self._world.note(f"stop the node for {seconds:g} s")
        node.stop()
        self._world.loop.call_later(seconds, node.go_on)

    # ── operators ───────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, said: str, call: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.create_task(self._operate(said, call), name=said)
        self._tasks.add(task)

    async def _operate(self, said: str, call: Callable[[], Awaitable[object]]) -> None:
        world, kind = self._world, said.split()[0]
        world.note(said)
        try:
            await call()
        except TokenmuxError as error:
            if error.code is ErrorCode.INTERNAL:
                raise
            world.operators[f"{kind} refused"] += 1
            world.note(f"{said}: {type(error).__name__}: {error}")
        else:
            world.operators[f"{kind} done"] += 1
            world.note(f"{said}: done")

    def _device(self) -> int:
        """One of the devices, or one that there is not."""
        devices = [*self._world.front.devices.present.setups, 9]
        return int(self._rng.choice(devices if self._rng.random() < 0.1 else devices[:-1] or devices))

    def _model(self) -> str:
        return self._rng.choice(list(self._world.all_facts))

    def _drain(self) -> None:
        index = self._device()
        self._ask(f"drain {index}", lambda: self._world.front.drain_device(index))

    def _undrain(self) -> None:
        index = self._device()
        self._ask(f"undrain {index}", lambda: self._world.front.drain_device(index, undo=True))

    def _add(self) -> None:
        arena_bytes = SLAB * self._rng.randint(6, 20)
        wanted = WantedDevice(arena_bytes=arena_bytes)
        self._ask(f"add {arena_bytes}", lambda: self._world.front.add_device(wanted))

    def _remove(self) -> None:
        index = self._device()
        self._ask(f"remove {index}", lambda: self._world.front.remove_device(index))

    def _resize(self) -> None:
        index, arena_bytes = self._device(), SLAB * self._rng.randint(6, 24)
        self._ask(f"resize {index} to {arena_bytes}", lambda: self._world.front.resize(arena_bytes, index))

    def _unregister(self) -> None:
        model, force = self._model(), self._rng.random() < 0.5
        self._ask(f"unregister {model} {force}", lambda: self._world.front.unregister(model, force=force))

    def _register(self) -> None:
        world, model = self._world, self._model()
        if model not in world.front.models:
            world.catalogue.kept.setdefault(model, FakeEntry(world.all_facts[model]))  # type: ignore[index]
        self._ask(f"register {model}", lambda: registered(world.front, model))

    def _load(self) -> None:
        model = self._model()
        self._ask(f"load {model}", lambda: self._world.front.load(model))

    def _unload(self) -> None:
        model = self._model()
        self._ask(f"unload {model}", lambda: self._world.front.unload(model))

    def _pin(self) -> None:
        model, pinned = self._model(), self._rng.random() < 0.6
        self._ask(f"pin {model} {pinned}", lambda: self._world.front.pin(model, pinned=pinned))
