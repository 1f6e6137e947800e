"""The process that computes masks for one model of an executor:
`python -m tokenmux.executor.mask_child QUESTIONS ORDERS PARENT VOCABULARY FOLDER`.

QUESTIONS and ORDERS are inherited sockets, PARENT the executor's process id, VOCABULARY the number of the
model's logits, FOLDER its catalogue entry.

    ORDERS      grammars to compile, on a thread of its own      ──▶ `GrammarReady`
    QUESTIONS   which tokens may come next in each request       ──▶ masks

Grammars are what strangers wrote, and reading a vocabulary stops Python for up to seconds. Here neither holds
up a step of another model, and a grammar that makes the library hang or fail costs this process, not the
device.
"""

import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread, get_native_id

from tokenmux.core.errors import TokenmuxError
from tokenmux.core.grammar import Grammar
from tokenmux.messages.codec import COMPLETIONS, INSTRUCTIONS, MASK_ANSWERS, MASK_QUESTIONS
from tokenmux.messages.completions import GrammarReady
from tokenmux.messages.frame_socket import FrameSocket
from tokenmux.messages.launches import AddGrammar, RemoveGrammar
from tokenmux.messages.mask_messages import MaskAnswer, MaskQuestion
from tokenmux.models.grammar.matchers import Matchers
from tokenmux.models.grammar.vocabulary import Vocabulary
from tokenmux.processes import orphans

MEMORY_BYTES = 2 << 30
"""Limit of private memory. A vocabulary of 150,000 tokens takes 60 MB, and most grammars a few."""

COMPILING_NICENESS = 10


class MaskChild:
    """Answers questions on the thread that calls `answer`, and compiles on another."""

    def __init__(self, folder: Path, vocab_size: int, orders: FrameSocket) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._orders = orders
        self._matchers: Matchers | None = None
        self._errors: dict[str, str] = {}
        """Why each grammar that was compiled cannot be used; empty for those that can."""
        self._changed = Condition()

    def begin(self) -> None:
        """Start compiling what is ordered."""
        Thread(target=self._carry_out_orders, name="grammars", daemon=True).start()

    def answer(self, questions: FrameSocket) -> None:
        """Answer until the executor is gone, which EOFError or OSError says."""
        while True:
            asked = MASK_QUESTIONS.decode(questions.receive())
            answers = tuple(map(self._answer, asked))
            questions.send(MASK_ANSWERS.encode(answers))

    def _answer(self, question: MaskQuestion) -> MaskAnswer:
        grammar_id = question.grammar_id
        with self._changed:  # after a move or a recovery a step may come before its grammar is compiled
            self._changed.wait_for(lambda: grammar_id in self._errors)
            error = self._errors[grammar_id]
        if error or self._matchers is None:
            return MaskAnswer(b"", error)
        return self._matchers.mask(question)

    def _carry_out_orders(self) -> None:
        with suppress(OSError, AttributeError):  # of this thread; masks are urgent
            os.setpriority(os.PRIO_PROCESS, get_native_id(), COMPILING_NICENESS)
        refusal = ""
        try:
            self._matchers = Matchers(Vocabulary.load(self._folder, self._vocab_size))
        except TokenmuxError as error:
            refusal = str(error)
        with suppress(EOFError, OSError):
            while True:
                for order in INSTRUCTIONS.decode(self._orders.receive()):
                    match order:
                        case AddGrammar(model, grammar):
                            ready = GrammarReady(model, grammar.id, self._compile(grammar, refusal))
                            self._orders.send(COMPLETIONS.encode((ready,)))
                        case RemoveGrammar(_, grammar_id):
                            self._forget(grammar_id)
                        case _:
                            pass

    def _compile(self, grammar: Grammar, error: str) -> str:
        """Returns why the grammar cannot be used, if it cannot; none can after an `error`."""
        if self._matchers is not None:
            try:
                self._matchers.add(grammar)
            except TokenmuxError as problem:
                error = str(problem)
        with self._changed:
            self._errors[grammar.id] = error
            self._changed.notify_all()
        return error

    def _forget(self, grammar_id: str) -> None:
        with self._changed:
            self._errors.pop(grammar_id, None)
        if self._matchers is not None:
            self._matchers.remove(grammar_id)


def be_a_mask_child() -> None:
    """Become the process: it lives for its parent alone."""
    questions, orders, parent, vocab_size = (int(argument) for argument in sys.argv[1:5])
    orphans.die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    with socket.socket(fileno=questions) as asked, socket.socket(fileno=orders) as ordered:
        child = MaskChild(Path(sys.argv[5]), vocab_size, FrameSocket(ordered))
        child.begin()
        with suppress(EOFError, OSError):
            child.answer(FrameSocket(asked))
    os._exit(0)  # whatever is being compiled


if __name__ == "__main__":
    be_a_mask_child()
