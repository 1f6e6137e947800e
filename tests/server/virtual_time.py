"""A clock that passes when the test says so."""

import asyncio


class VirtualTime:
    """A clock with a sleeper: time passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_s + seconds, until))
        await until

    def has_sleeper(self, seconds: float) -> bool:
        """True if somebody sleeps until `seconds` from now."""
        return any(at_s == self.now_s + seconds and not until.done() for at_s, until in self._sleepers)

    async def pass_s(self, seconds: float) -> None:
        """Wake whoever is due within this time, each at its time, and let what follows happen."""
        end_s = self.now_s + seconds
        await turns()
        while due := [sleeper for sleeper in self._sleepers if sleeper[0] <= end_s]:
            first = min(due, key=lambda sleeper: sleeper[0])
            self._sleepers.remove(first)
            self.now_s = max(self.now_s, first[0])
            if not first[1].done():
                first[1].set_result(None)
                await turns()
        self.now_s = end_s


async def turns(n: int = 20) -> None:
    """Let the loop come round a few times."""
    for _ in range(n):
        await asyncio.sleep(0)
