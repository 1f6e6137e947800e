"""An executor's side of the process that computes masks for one model (`mask_child.py`).

The process is started with the first grammar, and another one if it ends: it is told of all grammars, and
rebuilds where requests are in them from their tokens. So the end of a process changes no mask.
"""

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread

from tokenmux.core.facts import ModelId
from tokenmux.core.grammar import Grammar
from tokenmux.messages.codec import COMPLETIONS, INSTRUCTIONS, MASK_ANSWERS, MASK_QUESTIONS, MalformedMessage
from tokenmux.messages.completions import GrammarReady
from tokenmux.messages.frame_socket import FrameSocket
from tokenmux.messages.launches import AddGrammar, RemoveGrammar
from tokenmux.messages.mask_messages import MaskAnswer, MaskQuestion
from tokenmux.processes import orphans

MASKS_S = 5.0
"""Longest time for the masks of a step, beyond its forward pass. The library limits itself to some 15 ms a
mask; this is for one that hangs, on a machine that is busy."""

START_S = 20.0
"""The same for the first step of a process, which may have to read the vocabulary and compile."""

COMPILE_S = 60.0
"""Longest time for compiling a grammar that the front has tried within a second or two."""

MODULE = "tokenmux.executor.mask_child"


@dataclass(slots=True)
class _Running:
    """A process, and our ends of its sockets."""

    process: "subprocess.Popen[bytes]"
    questions: FrameSocket
    orders: FrameSocket
    is_warm: bool = False
    """True once it has answered: it has read the vocabulary."""
    ended: bool = False
    asking: Lock = field(default_factory=Lock)
    """Held from a question to its answers."""

    def answer_within(self, seconds: float) -> bytearray:
        """The next answer. Raises TimeoutError, and as `FrameSocket.receive`."""
        if not select.select([self.questions], [], [], seconds)[0]:
            raise TimeoutError
        return self.questions.receive()

    def kill(self) -> None:
        self.ended = True
        self.process.kill()

    def close(self) -> None:
        """Free what is left of a process that was killed."""
        self.process.wait()
        self.orders.close()
        with self.asking:
            self.questions.close()


class MaskProcess:
    """Computes masks for one model: `tokenmux.models.sampling.masks.MaskSource`. One thread orders grammars,
    another asks for masks."""

    def __init__(
        self, model: ModelId, folder: Path, vocab_size: int, report: Callable[[GrammarReady], None]
    ) -> None:
        """`report` is called from a thread of this object."""
        self._model = model
        self._arguments = (str(vocab_size), str(folder))
        self._report = report
        self._lock = Lock()
        self._running: _Running | None = None
        self._grammars: dict[str, Grammar] = {}
        self._compiling: dict[str, float] = {}
        """Since when grammars are being compiled for the first time, in the order in which they came."""
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return None if self._running is None else self._running.process.pid

    def add(self, grammar: Grammar) -> None:
        """Compile a grammar. `report` says when it is done."""
        with self._lock:
            self._compiling.setdefault(grammar.id, time.monotonic())
            running = self._started()
            self._grammars[grammar.id] = grammar
            self._order(running, AddGrammar(self._model, grammar))

    def remove(self, grammar_id: str) -> None:
        """Forget a grammar."""
        with self._lock:
            self._compiling.pop(grammar_id, None)
            if self._grammars.pop(grammar_id, None) is not None and self._running is not None:
                self._order(self._running, RemoveGrammar(self._model, grammar_id))

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._running is not None:
                self._running.kill()

    def begin(self, asked: Sequence[MaskQuestion]) -> Callable[[], Sequence[MaskAnswer]]:
        with self._lock:
            running = self._started()
            running.asking.acquire()
        with suppress(OSError):  # it has ended, as `answers` will notice
            running.questions.send(MASK_QUESTIONS.encode(tuple(asked)))

        def answers() -> Sequence[MaskAnswer]:
            try:
                answered = MASK_ANSWERS.decode(running.answer_within(MASKS_S if running.is_warm else START_S))
            except (OSError, EOFError, MalformedMessage):
                with self._lock:
                    running.kill()
            else:
                running.is_warm = True
                return answered
            finally:
                running.asking.release()
            if len(asked) > 1:
                # One of them is the reason, and the others are innocent.
                return [self.begin((one,))()[0] for one in asked]
            return [MaskAnswer(b"", "the process that computes what it allows hangs or has ended")]

        return answers

    # ── parts of the above ──────────────────────────────────────────────────────────────────────────────────

    def _started(self) -> _Running:
        """The process, started now if there is none. It is told of all grammars."""
        if self._running is None or self._running.ended:
            self._running = running = _start(self._arguments)
            Thread(target=self._listen, args=(running,), name=f"masks of {self._model}", daemon=True).start()
            for grammar in self._grammars.values():
                self._order(running, AddGrammar(self._model, grammar))
        return self._running

    def _order(self, running: _Running, order: AddGrammar | RemoveGrammar) -> None:
        with suppress(OSError):  # it has ended: the next one is told
            running.orders.send(INSTRUCTIONS.encode((order,)))

    def _listen(self, running: _Running) -> None:
        """Report what was compiled, until the process ends. What it was compiling then cannot be used."""
        with suppress(OSError, EOFError, MalformedMessage):
            while not self._is_late(running):
                if select.select([running.orders], [], [], 1.0)[0]:
                    for completion in COMPLETIONS.decode(running.orders.receive()):
                        if isinstance(completion, GrammarReady):
                            self._compiled(completion)
        with self._lock:
            guilty = next(iter(self._compiling), None) if not running.ended else None
            running.kill()
        running.close()
        if guilty is not None:
            self._grammars.pop(guilty, None)
            self._compiled(
                GrammarReady(self._model, guilty, "it takes more time or memory than a grammar may")
            )
        with self._lock:
            if self._compiling and not self._is_closed:
                self._started()

    def _is_late(self, running: _Running) -> bool:
        began_s = next(iter(self._compiling.values()), None)
        return began_s is not None and time.monotonic() > began_s + COMPILE_S

    def _compiled(self, ready: GrammarReady) -> None:
        with self._lock:
            self._compiling.pop(ready.grammar_id, None)
        self._report(ready)


def _start(arguments: Sequence[str]) -> _Running:
    our_questions, their_questions = socket.socketpair()
    our_orders, their_orders = socket.socketpair()
    with their_questions, their_orders:
        descriptors = (their_questions.fileno(), their_orders.fileno())
        command = [sys.executable, "-P", "-m", MODULE, *map(str, descriptors), str(os.getpid()), *arguments]
        process = orphans.started(
            lambda: subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        ).result()
    return _Running(process, FrameSocket(our_questions), FrameSocket(our_orders))
