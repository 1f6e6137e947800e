"""What registration writes of a model's text: equal to transformers, tried, and free of patterns where the
front reads it."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokenmux.core.errors import BadCheckpoint, DoesNotFit, InvalidRequest, NotServable, TokenmuxError
from tokenmux.models.catalogue import catalogue, tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.text import text_files
from tokenmux.models.text.decoder import Decoder
from tokenmux.models.text.encoder import Encoder, TextFacts
from tokenmux.models.text.template import TemplateInput, render
from tokenmux.models.text.text_files import write_text_files

BACKEND = tiny.byte_tokenizer()


def written(folder: Path, backend: PreTrainedTokenizerFast, vocab_size: int = tiny.VOCAB_SIZE) -> TextFacts:
    return write_text_files(
        folder, backend, vocab_size=vocab_size, stop_token_ids=frozenset({257}), trial_s=2.0
    )


def changed(change: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerFast:
    """The tokenizer of tiny models with another tokenizer.json."""
    document = json.loads(BACKEND.backend_tokenizer.to_str())
    change(document)
    made = tiny.byte_tokenizer()
    made._tokenizer = type(BACKEND.backend_tokenizer).from_str(json.dumps(document))
    return made


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entry")
    written(folder, BACKEND)
    return folder


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_text_is_encoded_and_decoded_as_by_transformers(entry: Path, text: str) -> None:
    ids = Encoder.load(entry).encode(text)
    assert ids == BACKEND.encode(text)
    decoder = Decoder.load(entry)
    assert decoder.decode(ids) == BACKEND.decode(ids, skip_special_tokens=True)
    detokenizer = decoder.detokenizer()
    assert "".join(detokenizer.push([token]) for token in ids) + detokenizer.finish() == decoder.decode(ids)


TEMPLATES = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}\n{{ m.content | trim }}\n{% endfor %}",
    ("{{ bos_token }}{% for m in messages if m.role != 'system' %}"
    "{{ m | tojson }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}"),
    ("{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ m['content'] }}{% endfor %}"),
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}\n",
    ("  {%- for m in messages %}\n    {{- m.content }}\n  {% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"),
    ("{% macro show(m) %}[{{ m.content }}]{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}{% endfor %}{{ tools is none }}"),
    "{{ dict(a=1) | tojson(indent=2) }}{{ messages[0].content }}{{ strftime_now('%Y') }}",
    ("{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ messages[0].content }}"),
)  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
@given(
    messages=st.lists(
        st.builds(
            dict,
            role=st.sampled_from(["user", "assistant", "system", "tool"]),
            content=st.text(max_size=12).filter(lambda text: text.isprintable()),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_templates_write_what_transformers_writes(template: str, messages: list[dict[str, str]]) -> None:
    def outcome(write: Callable[[], str]) -> str:
        try:
            return write()
        except Exception as error:  # noqa: BLE001 - the same one is expected of both
            return type(error).__name__

    conversation: Any = messages
    theirs = outcome(
        lambda: str(
            BACKEND.apply_chat_template(
                conversation, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )
    )
    assert outcome(lambda: render(template, messages, BACKEND.special_tokens_map)) == theirs


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__class__.__mro__ }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    with pytest.raises(Exception, match=r"(?i)unsafe|underscore|modify|not a safe|security|no attribute"):
        render(template + "{{ messages[0].content.x.y }}", [{"role": "user", "content": "x"}], {})


def test_a_decoder_that_searches_for_a_pattern_is_refused(tmp_path: Path) -> None:
    def pattern(document: dict[str, Any]) -> None:
        replace = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
        document["decoder"] = {"type": "Sequence", "decoders": [document["decoder"], replace]}

    with pytest.raises(BadCheckpoint, match="searches for a pattern"):
        written(tmp_path, changed(pattern))


def with_decoder(*parts: dict[str, Any]) -> PreTrainedTokenizerFast:
    return changed(lambda document: document.update(decoder={"type": "Sequence", "decoders": list(parts)}))


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
STRIP = {"type": "Strip", "content": " ", "start": 0, "stop": 3}
REPLACE = {"type": "Replace", "pattern": {"String": "he"}, "content": "X"}


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([BYTE_LEVEL, STRIP], "strips the ends of texts"),
        ([{"type": "Sequence", "decoders": [STRIP]}, BYTE_LEVEL], "strips the ends of texts"),
        ([BYTE_LEVEL, REPLACE], "replaces what several tokens may spell together"),
        ([{"type": "BPEDecoder", "suffix": ""}], "changes earlier text when later tokens come"),
    ],
)
def test_a_decoder_that_changes_what_was_sent_is_refused(
    parts: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadCheckpoint, match=f"{said}.*cannot be sent as they grow"):
        written(tmp_path, with_decoder(*parts))


def test_decoders_that_strip_beginnings_and_single_tokens_are_served(tmp_path: Path) -> None:
    first = {"type": "Strip", "content": " ", "start": 2, "stop": 0}
    written(tmp_path, with_decoder(REPLACE, BYTE_LEVEL, first))


def test_a_decoder_that_panics_is_the_models_trouble(tmp_path: Path) -> None:
    """As of an entry that was registered before such decoders were refused."""
    written(tmp_path, BACKEND)
    document = json.loads((tmp_path / "decoder.json").read_text())
    document["decoder"] = {"type": "Sequence", "decoders": [BYTE_LEVEL, STRIP]}
    (tmp_path / "decoder.json").write_text(json.dumps(document))
    decoder = Decoder.load(tmp_path)
    space = BACKEND.convert_tokens_to_ids("\u0120")
    stream = decoder.detokenizer()
    with pytest.raises(NotServable, match="the model's decoder fails on its output"):
        stream.push([space, space, space])
    with pytest.raises(NotServable, match="the model's decoder fails on its output"):
        decoder.decode([space])


def test_a_decoder_that_writes_much_for_each_token_is_refused(tmp_path: Path) -> None:
    def much(document: dict[str, Any]) -> None:
        replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 100_000}
        document["decoder"] = {"type": "Sequence", "decoders": [document["decoder"], replace]}

    with pytest.raises(BadCheckpoint, match="larger than 65536 bytes"):
        written(tmp_path, changed(much))


def test_a_tokenizer_for_a_larger_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="but the model has 60 tokens"):
        written(tmp_path, BACKEND, vocab_size=60)


@pytest.mark.parametrize("splits", [True, False])
def test_names_of_special_tokens_are_text_if_the_tokenizer_says_so(splits: bool, tmp_path: Path) -> None:
    backend = tiny.byte_tokenizer()
    backend.split_special_tokens = splits
    written(tmp_path, backend)
    encoder = Encoder.load(tmp_path)
    for text in ("<|user|>hello<|end|>", "plain"):
        assert encoder.encode(text) == backend.encode(text)
    assert (258 in encoder.encode("<|user|>")) is not splits


def test_special_tokens_beyond_the_vocabulary_do_not_refuse_a_tokenizer(tmp_path: Path) -> None:
    backend = tiny.byte_tokenizer()
    backend.add_special_tokens({"pad_token": "<|pad|>"})
    written(tmp_path, backend, vocab_size=backend.convert_tokens_to_ids("<|pad|>"))


def test_all_that_encoding_depends_on_is_in_the_digest(tmp_path: Path) -> None:
    """Processes keep what they have loaded by it, and a model may be registered again under its name."""
    plain, other, split = tiny.byte_tokenizer(), tiny.byte_tokenizer(), tiny.byte_tokenizer()
    other.chat_template = "{{ messages[0].content }}"
    split.split_special_tokens = True
    digests = [written(tmp_path, backend).digest for backend in (plain, plain, other, split)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def test_conversations_with_tools_get_the_template_for_them(tmp_path: Path) -> None:
    backend = tiny.byte_tokenizer()
    backend.chat_template = {
        "default": "plain {{ messages[0].content }}",
        "tool_use": "{{ tools | tojson }} {{ messages[0].content }}",
    }
    facts = written(tmp_path, backend)
    assert facts.takes_tools
    messages = [{"role": "user", "content": "x"}]
    for tools in ([], TOOLS):
        expected = backend.apply_chat_template(messages, tools=tools or None, tokenize=False)
        assert Encoder.load(tmp_path).chat_text(messages, TemplateInput(tools=tools)) == expected


@pytest.mark.parametrize("broken", ["{% if %}", "{{ raise_exception('no') }}", "{{ tools }} nothing said"])
def test_a_broken_template_for_tools_costs_only_the_tools(broken: str, tmp_path: Path) -> None:
    backend = tiny.byte_tokenizer()
    backend.chat_template = {"default": "plain {{ messages[0].content }}", "tool_use": broken}
    facts = written(tmp_path, backend)
    assert facts.can_chat
    assert not facts.takes_tools


def test_a_damaged_text_file_is_named(tmp_path: Path) -> None:
    written(tmp_path, BACKEND)
    for content in ("{", "[]", '{"version": 1}', '{"version": 99}', '{"version": 1, "stop_token_ids": "x"}'):
        (tmp_path / "text.json").write_text(content)
        with pytest.raises(BadCheckpoint, match=r"text\.json"):
            TextFacts.load(tmp_path)
    for name in ("encoder.json", "decoder.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(BadCheckpoint, match=r"decoder\.json"):
        Decoder.load(tmp_path)


def test_a_model_without_chats_says_so(tmp_path: Path) -> None:
    without = tiny.byte_tokenizer()
    without.chat_template = None
    facts = written(tmp_path, without)
    assert not facts.can_chat
    with pytest.raises(InvalidRequest, match="no chat template"):
        Encoder.load(tmp_path).encode_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.EROFS, TokenmuxError, "Read-only"),
        (errno.ENOSPC, DoesNotFit, "disk is full"),
        (errno.EIO, TokenmuxError, "Input/output"),
    ],
)
def test_a_disk_that_refuses_is_a_reason_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[TokenmuxError], said: str
) -> None:
    source = tiny.create("llama", tmp_path / "source")

    def refuses(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    for module, name in (
        (catalogue.tempfile, "mkdtemp"),
        (catalogue.shutil, "copy"),
        (text_files.TextFacts, "save"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, refuses)
            with pytest.raises(kind, match=said) as caught:
                Catalogue(tmp_path / "kept").register_folder("m", source)
            assert type(caught.value) is kind
        assert not list((tmp_path / "kept" / "models").iterdir())
