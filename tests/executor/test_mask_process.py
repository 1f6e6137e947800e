"""The process that computes masks: what it answers is the same after it was killed, and a bad grammar is
reported."""

import os
import queue
import signal
from pathlib import Path

from tokenmux.core.facts import ModelId
from tokenmux.core.grammar import Grammar
from tokenmux.executor.mask_process import MaskProcess
from tokenmux.messages.completions import GrammarReady
from tokenmux.messages.mask_messages import MaskQuestion
from tokenmux.models.catalogue import tiny
from tokenmux.models.text.text_files import write_text_files

GOOD, BAD = Grammar.of("start: /[0-9]{2,5}/"), Grammar.of("start: start")
READY_S = 60.0


def test_masks_are_the_same_after_the_process_was_killed(tmp_path: Path) -> None:
    backend = tiny.byte_tokenizer()
    write_text_files(
        tmp_path, backend, vocab_size=tiny.VOCAB_SIZE, stop_token_ids=frozenset({tiny.VOCAB_SIZE - 63})
    )
    ready: queue.Queue[GrammarReady] = queue.Queue()
    masks = MaskProcess(ModelId("m"), tmp_path, tiny.VOCAB_SIZE, ready.put)
    try:
        masks.add(GOOD)
        masks.add(BAD)
        told = {one.grammar_id: one.error for one in (ready.get(timeout=READY_S) for _ in range(2))}
        assert told[GOOD.id] == ""
        assert "without end" in told[BAD.id]
        digits = tuple(backend.encode("12", add_special_tokens=False))
        asked = [MaskQuestion(GOOD.id, digits[:n]) for n in range(3)]
        before = list(masks.begin(asked)())
        assert all(one.bits and not one.error for one in before)
        assert before[0] != before[2], "an end is allowed after two digits"
        pid = masks.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert list(masks.begin(asked)()) == before
        assert masks.pid != pid
    finally:
        masks.close()
