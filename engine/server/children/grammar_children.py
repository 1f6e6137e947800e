"""Constraints to grammars, in child processes: what strangers write is read there, never in the front.

A child reads one constraint at a time and is killed if that takes too long. What was found is kept by its
text, refusals too, so that a constraint is read once however many requests use it.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass

from tokenmux.core.errors import InvalidRequest, Overloaded, TokenmuxError, Unavailable
from tokenmux.core.grammar import Grammar
from tokenmux.server.children.child import Child, ChildAnswer, ChildEnded, LimitExceeded
from tokenmux.server.front.generation import Constraint

logger = logging.getLogger(__name__)

GRAMMAR_MODULE = "tokenmux.server.children.grammar_child"


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """Limits of reading a constraint."""

    seconds: float = 2.0
    """Processor time of one constraint."""
    memory_bytes: int = 1 << 30
    """Memory of one child process."""
    processes: int = 2
    """Number of child processes, each started when it is first needed."""
    wait_s: float = 30.0
    """How long a constraint may wait for a child."""
    kept_bytes: int = 16 << 20
    """Sources of grammars, and reasons of refusals, that are kept."""


class GrammarChildren:
    """A `GrammarReader` over child processes; see the module. Everything runs on one event loop."""

    def __init__(self, limits: GrammarLimits | None = None, *, module: str = GRAMMAR_MODULE) -> None:
        self.limits = limits or GrammarLimits()
        self._module = module
        self._free: asyncio.Queue[Child | None] = asyncio.Queue()
        for _ in range(self.limits.processes):
            self._free.put_nowait(None)
        self._busy: set[Child] = set()
        self._reading: dict[str, asyncio.Task[Grammar]] = {}
        self._known: OrderedDict[str, Grammar | InvalidRequest] = OrderedDict()
        self._known_bytes = 0
        self._closed = False

    async def read(self, constraint: Constraint) -> Grammar:
        if self._closed:
            raise Unavailable("the server has stopped")
        key = hashlib.sha256(f"{constraint.kind} {constraint.text}".encode()).hexdigest()
        known = self._known.get(key)
        if known is None:
            if key not in self._reading:
                task = asyncio.create_task(self._read(key, constraint), name="read a grammar")
                self._reading[key] = task
                task.add_done_callback(lambda _: self._reading.pop(key, None))
            # Others may wait for the same; who leaves must not cancel it.
            return await asyncio.shield(self._reading[key])
        self._known.move_to_end(key)
        if isinstance(known, InvalidRequest):
            raise InvalidRequest(str(known), field=known.field)
        return known

    def close(self) -> None:
        """Kill the children; waiting constraints get Unavailable. Does not block."""
        self._closed = True
        for task in list(self._reading.values()):
            task.cancel()
        for child in self._busy:
            child.kill()
        while not self._free.empty():
            idle = self._free.get_nowait()
            if idle is not None:
                idle.kill()

    async def _read(self, key: str, constraint: Constraint) -> Grammar:
        found: Grammar | InvalidRequest
        try:
            found = await self._ask(constraint)
        except InvalidRequest as refusal:
            found = refusal
        except asyncio.CancelledError:
            raise Unavailable("the server has stopped") from None
        self._keep(key, found)
        if isinstance(found, InvalidRequest):
            raise found
        return found

    async def _ask(self, constraint: Constraint) -> Grammar:
        try:
            child = await asyncio.wait_for(self._free.get(), self.limits.wait_s)
        except TimeoutError:
            raise Overloaded(
                f"{constraint.title} waited {self.limits.wait_s:g} s to be read: try again later"
            ) from None
        try:
            answer = None if child is None else await self._unless_gone(child, constraint)
            if answer is None:
                child = await Child.start(self._module, memory_bytes=self.limits.memory_bytes)
                answer = await self._answer(child, constraint)
            return Grammar.of(answer.checked().payload.decode())
        except LimitExceeded:
            child = None
            raise _refused(
                constraint, f"compiling it takes longer than {self.limits.seconds:g} s: make it simpler"
            ) from None
        except ChildEnded as error:
            child = None
            logger.error("a child that reads grammars: %s", error)
            raise _refused(
                constraint,
                f"compiling it takes over {self.limits.memory_bytes >> 20} MiB, or fails: make it simpler",
            ) from None
        except OSError as error:
            raise Unavailable(f"no process to read it can be started ({error}): try again later") from None
        except TokenmuxError as error:
            raise _refused(constraint, str(error)) from None
        except BaseException:
            if child is not None:
                child.kill()
            child = None
            raise
        finally:
            self._free.put_nowait(child)
            if self._closed and child is not None:
                child.kill()

    async def _unless_gone(self, child: Child, constraint: Constraint) -> ChildAnswer | None:
        """The answer of a child that was there before; None if it has ended, which may have had any cause,
        also while it was idle. What ends a new one is the constraint."""
        try:
            return await self._answer(child, constraint)
        except ChildEnded as error:
            logger.warning("a child that reads grammars is replaced: %s", error)
            return None

    async def _answer(self, child: Child, constraint: Constraint) -> ChildAnswer:
        self._busy.add(child)
        try:
            return await child.ask(
                {"kind": constraint.kind}, constraint.text.encode(), limit_s=self.limits.seconds
            )
        finally:
            self._busy.discard(child)

    def _keep(self, key: str, found: Grammar | InvalidRequest) -> None:
        self._known[key] = found
        self._known_bytes += _size(found)
        while self._known_bytes > self.limits.kept_bytes:
            _, dropped = self._known.popitem(last=False)
            self._known_bytes -= _size(dropped)


def _size(found: Grammar | InvalidRequest) -> int:
    return 500 + len(found.source if isinstance(found, Grammar) else str(found))


def _refused(constraint: Constraint, reason: str) -> InvalidRequest:
    return InvalidRequest(f"{constraint.title} cannot be used: {reason}", field="constraint")
