"""The demo's server: `tokenmux serve` in a separate process, with a pool.yaml written for it."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from tokenmux.core.errors import ProcessFailed

_READY = re.compile(r"listening on (\S+)")
_STOP_TIMEOUT_S = 20.0


@asynccontextmanager
async def served(config: Mapping[str, object], folder: Path) -> AsyncIterator[str]:
    """Run a server with this configuration; yields its address once it answers.

    Raises ProcessFailed with the end of the server's log if it stops before that.
    """
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    log = folder / "server.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tokenmux.cli", "serve", "--config", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield await _address(process, log)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _address(process: asyncio.subprocess.Process, log: Path) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        found = _READY.search(line.decode(errors="replace"))
        if found:
            return found[1]
    await process.wait()
    text = await asyncio.to_thread(log.read_text, errors="replace")
    tail = "\n".join(text.splitlines()[-20:])
    raise ProcessFailed(
        f"the demo's server ended with status {process.returncode} before it answered:\n{tail}"
    )
