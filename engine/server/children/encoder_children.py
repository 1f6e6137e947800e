"""Prompts to token ids, in a few child processes: what models' authors wrote runs there, never in the front.

A child does one prompt at a time and is killed if that takes longer than `TextLimits.seconds`; the request
then gets an error that says so. One model never holds all children, and models whose work was recently killed
share one child, so that the others are not affected. A cancelled request leaves the queue; work that a child
has begun is finished and dropped.
"""

import asyncio
import json
import logging
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tokenmux.core.errors import InvalidRequest, NotServable, Overloaded, Unavailable
from tokenmux.models.text.encoder import TextFacts, check_can_chat
from tokenmux.server.children.child import Child, ChildAnswer, ChildEnded, LimitExceeded
from tokenmux.server.front.generation import Chat, Encodable, Text, Words

logger = logging.getLogger(__name__)

ENCODER_MODULE = "tokenmux.server.children.encoder_child"
PieceKind = Literal["text", "chat", "words"]
SUSPECT_S = 60.0
"""How long a model whose work was killed shares one child with others like it."""


@dataclass(frozen=True, slots=True)
class TextLimits:
    """Limits of turning a prompt into token ids."""

    seconds: float = 5.0
    """Processor time of one prompt, loading the tokenizer included."""
    memory_bytes: int = 2 << 30
    """Memory of one child process."""
    processes: int = 3
    """Number of child processes, each started when it is first needed."""
    wait_s: float = 30.0
    """How long a prompt may wait for a child."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's tokenizer is. `model` names it in errors."""

    model: str
    path: Path
    facts: TextFacts


@dataclass(slots=True, eq=False)
class _Piece:
    """A prompt whose result is awaited."""

    source: Source
    kind: PieceKind
    payload: bytes
    answer: "asyncio.Future[tuple[int, ...]]"
    waiting: "asyncio.TimerHandle | None" = None


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for a child: empty, idle, or at work."""

    child: Child | None = None
    work: "asyncio.Task[None] | None" = None
    model: str | None = None
    """Whose prompt is being encoded; None while the child only starts, or nothing is at work."""
    loaded: set[str] = field(default_factory=set)


class EncoderChildren:
    """The pool of encoder children; see the module. Everything runs on one event loop."""

    def __init__(
        self,
        limits: TextLimits | None = None,
        *,
        module: str = ENCODER_MODULE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or TextLimits()
        self._module = module
        self._clock = clock
        self._slots = [_Slot() for _ in range(self.limits.processes)]
        self._waiting: deque[_Piece] = deque()
        self._killed_s: dict[str, float] = {}
        self._closed = False

    async def encode(self, model: str, path: Path, facts: TextFacts, prompt: Encodable) -> tuple[int, ...]:
        """Token ids of a prompt, by the tokenizer of the entry in folder `path`.

        Raises InvalidRequest, NotServable if it exceeds the limits, Overloaded if no child was free in time.
        """
        if self._closed:
            raise Unavailable("the server has stopped")
        if isinstance(prompt, Chat):
            check_can_chat(facts)
        answer: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()
        piece = _Piece(Source(model, path, facts), *_payload(prompt), answer)
        piece.waiting = asyncio.get_running_loop().call_later(self.limits.wait_s, self._waited, piece)
        self._waiting.append(piece)
        self._dispatch()
        try:
            return await answer
        finally:
            piece.waiting.cancel()
            if piece in self._waiting:
                self._waiting.remove(piece)

    def begin(self) -> None:
        """Start the first child now, so that the first prompt does not wait for it."""
        slot = self._slots[0]
        slot.work = asyncio.create_task(self._start_child(slot), name="start a child for prompts")

    def close(self) -> None:
        """Kill the children; waiting prompts get Unavailable. Does not block."""
        self._closed = True
        while self._waiting:
            _fail(self._waiting.popleft(), Unavailable("the server has stopped"))
        for slot in self._slots:
            if slot.work is not None:
                slot.work.cancel()
            if slot.child is not None:
                slot.child.kill()
                slot.child = None

    def _dispatch(self) -> None:
        for piece in list(self._waiting):
            free = [slot for slot in self._slots if slot.work is None]
            if not free:
                return
            if not self._may_start(piece.source.model):
                continue
            self._waiting.remove(piece)
            if piece.answer.done():
                continue
            slot = max(
                free, key=lambda slot: (piece.source.facts.digest in slot.loaded, slot.child is not None)
            )
            slot.work = asyncio.create_task(self._work(slot, piece), name=f"encode for {piece.source.model}")
            slot.model = piece.source.model

    def _may_start(self, model: str) -> bool:
        working = Counter(slot.model for slot in self._slots if slot.model is not None)
        if self._is_suspect(model):
            return not any(self._is_suspect(other) for other in working)
        return len(self._slots) == 1 or working[model] < len(self._slots) - 1

    def _is_suspect(self, model: str) -> bool:
        killed_s = self._killed_s.get(model)
        return killed_s is not None and self._clock() - killed_s < SUSPECT_S

    async def _start_child(self, slot: _Slot) -> None:
        try:
            slot.child = await Child.start(self._module, memory_bytes=self.limits.memory_bytes)
        except OSError as error:
            logger.warning("a child process for prompts could not be started: %s", error)
        finally:
            slot.work = None
            if not self._closed:
                self._dispatch()

    async def _work(self, slot: _Slot, piece: _Piece) -> None:
        try:
            answer = await self._ask(slot, piece)
            slot.loaded.add(piece.source.facts.digest)
            ids = array("i")
            ids.frombytes(answer.checked().payload)
            if not piece.answer.done():
                piece.answer.set_result(tuple(ids))
        except (LimitExceeded, ChildEnded) as error:
            slot.child = None
            self._killed_s[piece.source.model] = self._clock()
            refused = NotServable(self._said(piece, error))
            logger.error("%s", refused)
            _fail(piece, refused)
        except asyncio.CancelledError:
            _fail(piece, Unavailable("the server has stopped"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this prompt's
            _fail(piece, error)
        finally:
            slot.work = slot.model = None
            if not self._closed:
                self._dispatch()

    async def _ask(self, slot: _Slot, piece: _Piece) -> ChildAnswer:
        """What a child says of a prompt. Anything may have ended a child that was there before, also while
        it was idle, so a new one is asked then; what ends that one is the prompt. Raises as `Child.ask`."""
        source = piece.source
        header = {"path": str(source.path), "digest": source.facts.digest, "kind": piece.kind}
        if slot.child is not None:
            try:
                return await slot.child.ask(header, piece.payload, limit_s=self.limits.seconds)
            except ChildEnded as error:
                slot.child = None
                logger.warning("a child for prompts is replaced: %s", error)
        slot.child = await Child.start(self._module, memory_bytes=self.limits.memory_bytes)
        slot.loaded.clear()
        return await slot.child.ask(header, piece.payload, limit_s=self.limits.seconds)

    def _said(self, piece: _Piece, error: Exception) -> str:
        what = "chat template or tokenizer" if piece.kind == "chat" else "tokenizer"
        if isinstance(error, LimitExceeded):
            how = f"took longer than {self.limits.seconds:g} s for this prompt (`text.seconds`)"
        else:
            how = (
                f"failed on this prompt: {error} (it may use {self.limits.memory_bytes >> 20} MiB, "
                "`text.memory`)"
            )
        return f"the {what} of {piece.source.model} {how}; send another prompt, or token ids"

    def _waited(self, piece: _Piece) -> None:
        if piece in self._waiting:
            self._waiting.remove(piece)
            _fail(
                piece,
                Overloaded(
                    f"the prompt waited {self.limits.wait_s:g} s for a tokenizer: try again later, "
                    "or send token ids"
                ),
            )


def _payload(prompt: Encodable) -> tuple[PieceKind, bytes]:
    """What is sent to the child. Raises InvalidRequest for text that is not valid Unicode."""
    try:
        match prompt:
            case Text(text):
                return "text", text.encode()
            case Words(texts):
                return "words", json.dumps(texts, ensure_ascii=False).encode()
            case Chat():
                return "chat", json.dumps(_template_input(prompt), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the prompt is not valid Unicode (character {error.start})") from None


def _template_input(chat: Chat) -> dict[str, Any]:
    """What the template of a conversation is given, by name."""
    messages = [
        {**message.fields, "role": message.role, "content": message.content} for message in chat.messages
    ]
    return {**{name.name: getattr(chat, name.name) for name in fields(chat)}, "messages": messages}


def _fail(piece: _Piece, error: Exception) -> None:
    if not piece.answer.done():
        piece.answer.set_exception(error)
