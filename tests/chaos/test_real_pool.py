"""A real server under everything at once: nothing is lost, no token changes, nothing is left behind."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.real_pool import BAD_LINES, MIB, Processes, RealPool, write_models
from tokenmux.client import AsyncClient

GONE_S = 10.0
"""Within this time after a signal no process is left; the machine may be busy."""

SEED = int(os.environ.get("CHAOS_SEED", "1"))


@contextmanager
def server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tokenmux serve` with the `pool.yaml` of the folder; yields the process and its address."""
    command = [sys.executable, "-m", "tokenmux.cli", "serve", "--config", str(folder / "pool.yaml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening on " in line, (folder / "log").read_text()
        yield process, line.split("listening on ")[1].strip()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def until_gone(pids: list[int]) -> None:
    """Wait until none of these processes is left."""
    for _ in range(int(GONE_S / 0.1)):
        left = [pid for pid in pids if is_running(pid)]
        if not left:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"left running: {left}")


def is_running(pid: int) -> bool:
    """False also for one that has ended and whose parent has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def run_chaos(folder: Path, seconds: float, n_streams: int, seed: int) -> None:
    models = await asyncio.to_thread(write_models, folder)
    with server(folder) as (process, address):
        processes = Processes(process.pid)
        async with AsyncClient(address, resumption=None) as client:
            pool = RealPool(client, processes, folder, models, seed)
            await pool.learn()
            n_front = processes.n_descriptors(process.pid)
            await pool.play(seconds / 2, n_streams)
            await pool.calm()
            middle = processes.resident_bytes(process.pid)
            await pool.play(seconds / 2, n_streams)
            await pool.calm()
        tally = pool.tally
        print(f"seed {seed}: {dict(sorted(tally.answers.items()))}")
        print(*tally.mischief, sep="\n")
        assert not tally.faults, f"seed {seed}: {tally.faults[:5]}"
        assert tally.answers["stream OK"] > 0.5 * sum(
            n for said, n in tally.answers.items() if said.startswith("stream")
        )
        end = processes.resident_bytes(process.pid)
        print(f"front: {middle / MIB:.0f} MiB in the middle, {end / MIB:.0f} MiB at the end")
        assert end < 1.15 * middle, "the front grows"
        await asyncio.sleep(1.0)  # its end of the clients' connections is closed
        assert processes.n_descriptors(process.pid) <= n_front, "the front keeps descriptors"
        check_descriptors_of_node(processes)
        everything = processes.all()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
        await until_gone(everything)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(address.rsplit(":", 1)[1])))
    bad = [line for line in (folder / "log").read_text().splitlines() if BAD_LINES.search(line)]
    assert not bad, f"seed {seed}: {bad[:5]}"


def check_descriptors_of_node(processes: Processes) -> None:
    """Beside a dozen of its own a node has a few for each executor, and one for each image in host memory."""
    node = processes.node()
    assert node is not None
    links = [os.readlink(f"/proc/{node}/fd/{each}") for each in os.listdir(f"/proc/{node}/fd")]
    memory = [link for link in links if "memfd:" in link]
    assert len(memory) <= 14, f"memory is left: {memory}"
    assert len(links) - len(memory) <= 12 + 4 * len(processes.executors()), f"descriptors are left: {links}"


@pytest.mark.timeout(600)
async def test_a_minute_of_chaos(tmp_path: Path) -> None:
    seconds = float(os.environ.get("CHAOS_SECONDS", "60"))
    await run_chaos(tmp_path, seconds, n_streams=min(100, 8 * (os.cpu_count() or 1)), seed=SEED)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
async def test_ten_minutes_of_chaos(tmp_path: Path) -> None:
    """By another seed each night: it is printed, and CHAOS_SEED replays it."""
    seed = int(os.environ.get("CHAOS_SEED", secrets.randbelow(1 << 31)))
    print(f"seed {seed}")
    await run_chaos(tmp_path, 600.0, n_streams=100, seed=seed)
