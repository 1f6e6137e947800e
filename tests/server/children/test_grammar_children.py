"""Constraints are read in child processes: once each, within limits, and a refusal says why."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tokenmux.core.errors import InvalidRequest, Unavailable
from tokenmux.server.children.child import Child
from tokenmux.server.children.grammar_children import GrammarChildren, GrammarLimits
from tokenmux.server.front.generation import Constraint

DIGITS = Constraint("regex", "[0-9]+")


@asynccontextmanager
async def grammars(**limits: float) -> AsyncIterator[GrammarChildren]:
    made = GrammarChildren(GrammarLimits(**limits))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


async def test_a_constraint_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    ask = Child.ask

    async def counted(child: Child, header: Any, *rest: Any, **more: Any) -> Any:
        asked.append(header)
        return await ask(child, header, *rest, **more)

    monkeypatch.setattr(Child, "ask", counted)
    async with grammars(seconds=20) as children:
        first, second = await asyncio.gather(children.read(DIGITS), children.read(DIGITS))
        assert first == second == await children.read(DIGITS)
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="the regular expression cannot be used") as refused:
                await children.read(Constraint("regex", "(a"))
            assert refused.value.field == "constraint"
    assert len(asked) == 2


async def test_one_that_takes_too_long_is_refused_and_others_go_on() -> None:
    async with grammars(seconds=0.001, processes=1) as children:
        with pytest.raises(InvalidRequest, match=r"takes longer than 0.001 s: make it simpler"):
            await children.read(DIGITS)
        assert children._free.qsize() == 1


async def test_a_child_that_is_killed_while_it_is_idle_costs_no_constraint() -> None:
    """A refusal would be kept, and the constraint refused for as long as the server runs."""
    async with grammars(seconds=20, processes=1) as children:
        await children.read(DIGITS)
        child = await children._free.get()
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        child._process.wait()
        children._free.put_nowait(child)
        assert await children.read(Constraint("regex", "[a-z]+"))


async def test_nothing_is_read_after_the_end() -> None:
    async with grammars() as children:
        pass
    with pytest.raises(Unavailable):
        await children.read(DIGITS)
