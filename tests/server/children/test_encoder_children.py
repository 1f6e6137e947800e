"""Prompts in child processes: the same ids as transformers gives, limits that hold, and others that do not
notice."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tokenmux.core.errors import InvalidRequest, NotServable, Overloaded, Unavailable
from tokenmux.models.catalogue import tiny
from tokenmux.models.text.encoder import TextFacts
from tokenmux.models.text.text_files import write_text_files
from tokenmux.server.children.encoder_children import EncoderChildren, TextLimits
from tokenmux.server.front.generation import Chat, ChatMessage, Text, Words

ENDLESS = (
    "{% if messages|length > 1 %}{% for i in range(100000) %}{% for j in range(100000) %}{% endfor "
    "%}{% endfor %}{% endif %}"
    "{{ messages[0].content }}"
)
ONE, TWO = Chat((ChatMessage("user", "hi"),)), Chat((ChatMessage("user", "hi"), ChatMessage("user", "x")))


def entry(folder: Path, template: str | None = None) -> tuple[Path, TextFacts]:
    folder.mkdir()
    backend = tiny.byte_tokenizer()
    if template is not None:
        backend.chat_template = template
    return folder, write_text_files(
        folder, backend, vocab_size=tiny.VOCAB_SIZE, stop_token_ids=frozenset({257})
    )


@asynccontextmanager
async def texts(**limits: float) -> AsyncIterator[EncoderChildren]:
    made = EncoderChildren(TextLimits(**limits))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


async def test_text_and_chats_become_what_transformers_makes_of_them(tmp_path: Path) -> None:
    good, backend = entry(tmp_path / "good"), tiny.byte_tokenizer()
    async with texts() as pool:
        for text in ("hello", "naïve 😀 <|end|>", ""):
            assert await pool.encode("m", *good, Text(text)) == tuple(backend.encode(text))
        conversation = [{"role": "user", "content": "hi"}]
        expected = backend.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
        assert await pool.encode("m", *good, ONE) == tuple(expected)
        conversation.append({"role": "assistant", "content": "It is"})
        expected = backend.apply_chat_template(conversation, continue_final_message=True, return_dict=False)
        messages = (*ONE.messages, ChatMessage("assistant", "It is"))
        assert await pool.encode("m", *good, Chat(messages, continue_final_message=True)) == tuple(expected)
        found = Words.split(await pool.encode("m", *good, Words(("ab", "", " é"))))
        assert found == tuple(tuple(backend.encode(text)) for text in ("ab", "", " é"))
        with pytest.raises(InvalidRequest, match="not valid Unicode"):
            await pool.encode("m", *good, Text("\ud800"))


async def test_a_template_is_given_tools_and_calls_as_they_are(tmp_path: Path) -> None:
    shown = "{{ messages|tojson }}{{ tools|tojson }}"
    tool = {"type": "function", "function": {"name": "now"}}
    call = {"id": "x", "type": "function", "function": {"name": "now", "arguments": {"a": 1}}}
    messages = (ChatMessage("assistant", "", {"tool_calls": [call]}), ChatMessage("user", "Zanzibar"))
    async with texts() as pool:
        ids = await pool.encode("m", *entry(tmp_path / "m", shown), Chat(messages, tools=(tool,)))
    text = tiny.byte_tokenizer().decode(ids)
    told = [
        {"tool_calls": [call], "role": "assistant", "content": ""},
        {"role": "user", "content": "Zanzibar"},
    ]
    assert text == json.dumps(told) + json.dumps([tool])


async def test_a_template_that_does_not_end_is_killed_and_named_and_others_are_served(tmp_path: Path) -> None:
    bad, good = entry(tmp_path / "bad", ENDLESS), entry(tmp_path / "good")
    async with texts(seconds=0.5) as pool:
        assert await pool.encode("bad", *bad, ONE)
        stuck = [asyncio.create_task(pool.encode("bad", *bad, TWO)) for _ in range(4)]
        answered = 0
        while not all(task.done() for task in stuck):
            await pool.encode("good", *good, ONE)
            answered += 1
        assert answered > 10
        for task in stuck:
            with pytest.raises(
                NotServable, match=r"the chat template or tokenizer of bad took longer than 0\.5 s"
            ):
                task.result()
        assert await pool.encode("bad", *bad, ONE)


async def test_a_prompt_that_takes_too_much_memory_costs_its_process_only(tmp_path: Path) -> None:
    greedy = entry(
        tmp_path / "greedy", "{{ 'x' * (10 ** 9 * (messages|length - 1)) }}{{ messages[0].content }}"
    )
    async with texts(memory_bytes=512 << 20) as pool:
        with pytest.raises(NotServable, match="memory"):
            await pool.encode("greedy", *greedy, TWO)
        assert await pool.encode("greedy", *greedy, ONE)


async def test_a_child_that_is_killed_while_it_is_idle_costs_no_prompt(tmp_path: Path) -> None:
    """As the system does if memory is short: the next prompt is not to blame."""
    good = entry(tmp_path / "good")
    async with texts(processes=1) as pool:
        ids = await pool.encode("m", *good, ONE)
        child = pool._slots[0].child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        child._process.wait()
        assert await pool.encode("m", *good, ONE) == ids
        assert pool._slots[0].child is not child


async def test_what_is_cancelled_leaves_the_queue(tmp_path: Path) -> None:
    bad, good = entry(tmp_path / "bad", ENDLESS), entry(tmp_path / "good")
    async with texts(seconds=1.0, processes=1) as pool:
        await pool.encode("good", *good, ONE)
        stuck = asyncio.create_task(pool.encode("bad", *bad, TWO))
        waiting = [asyncio.create_task(pool.encode("good", *good, Text("x"))) for _ in range(50)]
        await asyncio.sleep(0)
        for task in waiting[1:]:
            task.cancel()
        await asyncio.wait(waiting[1:])
        assert len(pool._waiting) <= 1
        assert await waiting[0] == (tiny.byte_tokenizer().encode("x")[0],)
        with pytest.raises(NotServable):
            await stuck


async def test_who_waits_too_long_is_told_to_try_again(tmp_path: Path) -> None:
    bad, good = entry(tmp_path / "bad", ENDLESS), entry(tmp_path / "good")
    async with texts(seconds=5.0, processes=1, wait_s=0.2) as pool:
        stuck = asyncio.create_task(pool.encode("bad", *bad, TWO))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="tokenizer"):
            await pool.encode("good", *good, Text("x"))
        stuck.cancel()


async def test_closing_waits_for_nothing(tmp_path: Path) -> None:
    bad = entry(tmp_path / "bad", ENDLESS)
    pool = EncoderChildren(TextLimits(seconds=60))
    await pool.encode("bad", *bad, ONE)
    stuck = [asyncio.create_task(pool.encode("bad", *bad, TWO)) for _ in range(4)]
    await asyncio.sleep(0.1)
    began_s = time.monotonic()
    pool.close()
    assert time.monotonic() - began_s < 30
    for task in stuck:
        with pytest.raises(Unavailable):
            await task
    with pytest.raises(Unavailable):
        await pool.encode("bad", *bad, ONE)


def _panics(document: dict[str, object]) -> None:
    document["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }


async def test_a_tokenizer_that_panics_is_that_prompts_error(tmp_path: Path) -> None:
    path, facts = entry(tmp_path / "panic")
    edit(path / "encoder.json", _panics)
    async with texts() as pool:
        with pytest.raises(InvalidRequest, match="tokenizer cannot encode"):
            await pool.encode("panic", path, facts, Text("a" * 40 + "b"))
        assert await pool.encode("panic", path, facts, Text("b"))


def edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
