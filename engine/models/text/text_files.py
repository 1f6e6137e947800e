"""Writes an entry's text files at registration (`encoder.py` describes them), and tries them before they are
used.

A tokenizer that cannot be read, encodes outside the model's vocabulary or takes too long is refused. A chat
template that fails, or that our renderer does not format like transformers, only costs the model its
conversations, and the reason is kept.
"""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokenmux.core.errors import BadCheckpoint
from tokenmux.models.foreign_errors import foreign_errors_as
from tokenmux.models.text.decoder import Decoder
from tokenmux.models.text.encoder import (
    DECODER,
    ENCODER,
    Encoder,
    TextFacts,
    as_template_takes,
)
from tokenmux.models.text.template import TemplateInput, render

TRIAL_S = 5.0
"""Limit of processor time for loading a tokenizer, encoding a sentence and rendering a greeting."""

_LONGEST_TOKEN_CHARS = 1 << 16
_LARGEST_DECODER_BYTES = 1 << 16
"""Limit for a decoder without its vocabulary: its replacement for a token's text is emitted with every
token."""

_TRIALS = ("Hello, world! 123", "naïve café, 你好 😀\n\tdone")
_TRIED_SPECIAL_TOKENS = 16
_TRIED_OUTPUTS, _LONGEST_TRIED_OUTPUT, _FIRST_TOKENS = 400, 12, 300
_WORD = "Zanzibar"
_CHAT = ({"role": "user", "content": f"hello {_WORD}"},)
_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a word up.",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}},
                "required": ["word"],
            },
        },
    },
)


class _TooLong(BaseException):
    """Not an Exception, since jinja swallows those raised while it computes a constant."""


def write_text_files(
    folder: Path,
    backend: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    stop_token_ids: frozenset[int],
    trial_s: float = TRIAL_S,
) -> TextFacts:
    """Write text.json, encoder.json and decoder.json into `folder`. Raises BadCheckpoint.

    `backend` is the model's tokenizer as transformers reads it; `trial_s` limits the time of the trial.
    """
    core: Any = backend.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    document: dict[str, Any] = json.loads(core.to_str())
    text = json.dumps(document, ensure_ascii=False)
    (folder / ENCODER).write_text(text, encoding="utf-8")
    (folder / DECODER).write_text(
        json.dumps(_decoder(folder, document), ensure_ascii=False), encoding="utf-8"
    )
    template, refusal, in_parts = _template(backend, trial_s)
    facts = TextFacts(
        stop_token_ids=frozenset(token for token in stop_token_ids if token < vocab_size),
        longest_token_chars=_longest_token(folder, core),
        template=template,
        template_refusal=refusal,
        in_parts=in_parts,
        special_tokens=dict(backend.special_tokens_map),
        digest="",
        tool_template=_tool_template(backend, trial_s, in_parts) if template and not refusal else None,
        splits_special_tokens=bool(getattr(backend, "split_special_tokens", False)),
    )
    facts = replace(facts, digest=hashlib.sha256((repr(facts) + text).encode()).hexdigest()[:16])
    facts.save(folder)
    _try(folder, backend, vocab_size, trial_s)
    return facts


def _decoder(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer without what only encoding needs."""
    decoder = document.get("decoder")
    if _has_pattern(decoder):
        raise BadCheckpoint(
            f"{folder}: the tokenizer's decoder searches for a pattern, which is not supported"
        )
    if fault := _fault_of(decoder):
        raise BadCheckpoint(f"{folder}: the tokenizer's decoder {fault}: outputs cannot be sent as they grow")
    if len(json.dumps(decoder)) > _LARGEST_DECODER_BYTES:
        raise BadCheckpoint(
            f"{folder}: the tokenizer's decoder is larger than {_LARGEST_DECODER_BYTES} bytes"
        )
    model = dict(document["model"])
    if model.get("type") == "BPE":
        model["merges"] = []
    unused = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding"))
    # The pattern of an added token is its text, never an expression.
    return {**document, **unused, "model": model}


def _has_pattern(value: object) -> bool:
    if isinstance(value, dict):
        return "Regex" in value or any(_has_pattern(inner) for inner in value.values())
    return isinstance(value, list) and any(_has_pattern(inner) for inner in value)


def _fault_of(decoder: object) -> str | None:
    """What a decoder does that changes text after it was sent, if it does."""
    joined = False
    for part in _parts(decoder):
        kind, pattern = part.get("type"), part.get("pattern")
        if kind == "Strip" and part.get("stop"):
            return "strips the ends of texts"
        if kind == "Replace" and joined and isinstance(pattern, dict) and len(pattern.get("String", "")) > 1:
            return "replaces what several tokens may spell together"
        joined |= kind in ("Fuse", "ByteLevel")
    return None


def _parts(decoder: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(decoder, dict):
        yield decoder
        for part in decoder.get("decoders") or ():
            yield from _parts(part)


def _longest_token(folder: Path, core: Any) -> int:
    longest = max(map(len, core.get_vocab(with_added_tokens=True)), default=0)
    if not 0 < longest <= _LONGEST_TOKEN_CHARS:
        raise BadCheckpoint(
            f"{folder}: the tokenizer's longest token has {longest} characters; 1 to "
            f"{_LONGEST_TOKEN_CHARS} are supported"
        )
    return longest


def _template(backend: PreTrainedTokenizerBase, trial_s: float) -> tuple[str | None, str, bool]:
    """The chat template, the reason if it cannot be used, and whether it takes contents only as parts."""
    if backend.chat_template is None:
        return None, "", False
    try:
        template: str = backend.get_chat_template()
        with _within(trial_s):
            for in_parts in (False, True):
                messages = as_template_takes(_CHAT, in_parts)
                ours = render(template, messages, backend.special_tokens_map)
                if _WORD in ours:
                    return template, _difference(backend, template, messages), in_parts
    except MemoryError:
        return "", "it takes more memory than a template may", False
    except _TooLong:
        return "", f"it takes longer than {trial_s:g} s to write a greeting", False
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this prompt's
        return "", f"it fails on a greeting: {str(error) or type(error).__name__}"[:300], False
    return template, "it leaves out what the user says", False


def _tool_template(backend: PreTrainedTokenizerBase, trial_s: float, in_parts: bool) -> str | None:
    """The template that transformers uses for conversations with tools, if it is another one; None if it
    cannot be used."""
    try:
        template: str = backend.get_chat_template(tools=list(_TOOLS))
        with _within(trial_s):
            messages = as_template_takes(_CHAT, in_parts)
            text = render(template, messages, backend.special_tokens_map, TemplateInput(tools=_TOOLS))
            is_usable = _WORD in text and not _difference(backend, template, messages, _TOOLS)
    except (_TooLong, Exception):  # noqa: BLE001 - whatever it is, it costs the model its tools
        return None
    return template if is_usable and template != backend.get_chat_template() else None


def _difference(
    backend: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, object]],
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """How transformers' text differs; empty if it is the same. Compared twice, since a template may show
    the time."""
    given = TemplateInput(tools=tools)
    for _ in range(2):
        conversation: Any = [dict(message) for message in messages]
        theirs = backend.apply_chat_template(
            conversation, tools=list(tools) or None, tokenize=False, add_generation_prompt=True
        )
        if theirs == render(template, messages, backend.special_tokens_map, given):
            return ""
    return "transformers formats the same conversation differently"


def _try(folder: Path, backend: PreTrainedTokenizerBase, vocab_size: int, trial_s: float) -> None:
    """Load what was written and use it. Raises BadCheckpoint."""
    began_s = time.process_time()
    try:
        with (
            foreign_errors_as(
                lambda error: BadCheckpoint(f"{folder}: the tokenizer cannot encode text ({error})")
            ),
            _within(trial_s),
        ):
            encoder, decoder = Encoder.load(folder), Decoder.load(folder)
            names = " ".join(backend.all_special_tokens[:_TRIED_SPECIAL_TOKENS])
            for text in (*_TRIALS, names):
                ids = encoder.encode(text)
                if ids != backend.encode(text):
                    raise BadCheckpoint(
                        f"{folder}: the tokenizer's own code and its file encode text differently"
                    )
                # Special tokens may lie beyond the vocabulary: prompts with such a one are refused.
                beyond = [token for token in ids if text != names and not 0 <= token < vocab_size]
                if beyond:
                    raise BadCheckpoint(
                        f"{folder}: the tokenizer gives token {beyond[0]}, but the model has "
                        f"{vocab_size} tokens"
                    )
                decoder.decode(ids)
            _try_streaming(folder, decoder, min(vocab_size, backend.backend_tokenizer.get_vocab_size()))
    except _TooLong:
        raise _too_slow(folder, trial_s) from None
    # Native code does not notice the signal, so it is judged afterwards.
    if time.process_time() - began_s > trial_s:
        raise _too_slow(folder, trial_s)


def _try_streaming(folder: Path, decoder: Decoder, n_tokens: int) -> None:
    """Decode random outputs as they grow and at once. Raises BadCheckpoint if they differ: the decoder then
    changes text that clients already have.
    """
    drawn = Random(0)
    # Bytes, spaces and single letters are among the first.
    pool = [*range(min(n_tokens, _FIRST_TOKENS)), *(drawn.randrange(n_tokens) for _ in range(_FIRST_TOKENS))]
    for _ in range(_TRIED_OUTPUTS):
        ids = drawn.choices(pool, k=drawn.randint(1, _LONGEST_TRIED_OUTPUT))
        stream = decoder.detokenizer()
        grown = "".join(map(stream.push, ([token] for token in ids))) + stream.finish()
        if grown != decoder.decode(ids):
            raise BadCheckpoint(
                f"{folder}: the tokenizer's decoder changes earlier text when later tokens come (as of the "
                f"tokens {ids}): outputs cannot be sent as they grow"
            )


def _too_slow(folder: Path, trial_s: float) -> BadCheckpoint:
    return BadCheckpoint(f"{folder}: loading and trying the tokenizer takes longer than {trial_s:g} s")


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _TooLong in the block once it has computed for `seconds`. Works only in the main thread; in
    others it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    inside = True

    def late(number: int, frame: FrameType | None) -> None:
        if inside:
            raise _TooLong

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds / 10)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
