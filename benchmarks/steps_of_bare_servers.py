"""The steps at which bare servers send: all streams wait for the same one. It imports nothing else."""

import asyncio


class SharedSteps:
    """Wakes all that `wait`, once every `step_s` seconds."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._stepped = asyncio.Event()

    async def run(self) -> None:
        """Step for ever."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            next_s = max(next_s + self._step_s, loop.time())
            await asyncio.sleep(next_s - loop.time())
            self._stepped.set()
            self._stepped = asyncio.Event()

    async def wait(self) -> None:
        """Return at the next step."""
        await self._stepped.wait()
