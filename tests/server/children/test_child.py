"""Child processes as they really are: limits that kill, answers that cannot be trusted, parents that die."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tokenmux.core.errors import BadCheckpoint, NotServable
from tokenmux.server.children import frames
from tokenmux.server.children.child import Child, ChildAnswer, ChildEnded, LimitExceeded

MEMORY = 1 << 30


@asynccontextmanager
async def child(name: str, memory_bytes: int = MEMORY) -> AsyncIterator[Child]:
    started = await Child.start(f"tests.server.children.scripts.{name}", memory_bytes=memory_bytes)
    try:
        yield started
    finally:
        started.kill()


async def test_a_child_answers_one_thing_after_another() -> None:
    async with child("broken") as process:
        for text in ("first", "second"):
            answer = await process.ask({"what": text}, text.encode(), limit_s=10)
            assert (answer.header, answer.payload) == ({"what": text}, text.encode())


async def test_work_that_takes_too_long_ends_the_process() -> None:
    async with child("silent") as process:
        with pytest.raises(LimitExceeded):
            await process.ask({}, limit_s=0.2)
        await gone(process.pid)


@pytest.mark.parametrize(("what", "said"), [("abort", "signal 6"), ("rubbish", "process")])
async def test_a_child_that_crashes_or_says_rubbish_is_ended(what: str, said: str) -> None:
    async with child("broken") as process:
        with pytest.raises(ChildEnded, match=said):
            await process.ask({"do": what}, limit_s=10)
        await gone(process.pid)


async def test_more_memory_than_allowed_is_an_answer() -> None:
    async with child("broken", memory_bytes=256 << 20) as process:
        answer = await process.ask({"do": "memory", "bytes": 512 << 20}, limit_s=10)
        with pytest.raises(NotServable, match="memory"):
            answer.checked()
        assert (await process.ask({"do": "memory", "bytes": 1 << 20}, limit_s=10)).header["do"] == "memory"


async def test_secrets_stay_in_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "TOKENMUX_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"):
        monkeypatch.setenv(name, "sesame")
    async with child("broken") as process:
        names = (await process.ask({"do": "environment"}, limit_s=10)).header["names"]
    assert "PATH" in names
    assert not {"HF_TOKEN", "TOKENMUX_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD"} & set(names)


async def test_a_signal_to_the_group_is_not_the_childs() -> None:
    async with child("broken") as process:
        await process.ask({}, limit_s=10)
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
        assert (await process.ask({"still": "there"}, limit_s=10)).header == {"still": "there"}


def test_a_child_in_an_endless_loop_dies_with_its_parent() -> None:
    parent = (
        "import asyncio, os, signal, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        "from tokenmux.server.children.child import Child\n"
        "async def main():\n"
        "    child = await Child.start('tests.server.children.scripts.silent', memory_bytes=1 << 30)\n"
        "    asking = asyncio.ensure_future(child.ask({}, limit_s=60))\n"
        "    while child._computed_s() < 0.3:\n"
        "        await asyncio.sleep(0.01)\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", parent],
        cwd=Path(__file__).parents[3],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    asyncio.run(gone(int(run.stdout)))


@pytest.mark.parametrize(
    "said", ["os", "Exception", "InternalError", "", "INTERNAL", None, 3, ["internal"], {}]
)
def test_an_error_with_an_unknown_code_blames_the_model(said: object) -> None:
    with pytest.raises(BadCheckpoint, match="what it said"):
        ChildAnswer({"error": said, "message": "what it said"}, b"").checked()


@pytest.mark.parametrize(
    "data", [b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{x", b"\x01\0\0\0\xff\xff\xff\xff{"]
)
async def test_what_is_no_frame_is_refused_before_it_is_read(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    with pytest.raises(frames.BrokenFrame):
        await frames.read_async(reader)


async def gone(pid: int) -> None:
    """Wait until the process has ended; a zombie has."""
    await until(lambda: not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                if condition():
                    return
            except (FileNotFoundError, ProcessLookupError):
                return
            await asyncio.sleep(0.01)
