"""Text in and out: encoding, chat templates, and text that grows token by token."""

from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.errors import BadCheckpoint, InvalidRequest
from tokenmux.models.catalogue import tiny
from tokenmux.models.text.checkpoint_tokenizer import CheckpointTokenizer
from tokenmux.models.text.decoder import Decoder
from tokenmux.models.text.detokenizer import Detokenizer
from tokenmux.models.text.encoder import Encoder, TextFacts

BYTES = tiny.byte_tokenizer()
"""Each byte is a token, so that every character of more than one byte spans tokens."""

FACTS = TextFacts(
    stop_token_ids=frozenset({257}),
    longest_token_chars=16,
    template=BYTES.chat_template,
    template_refusal="",
    in_parts=False,
    special_tokens=BYTES.special_tokens_map,
    digest="",
)
ENCODER = Encoder(BYTES.backend_tokenizer, FACTS)
DECODER = Decoder(BYTES.backend_tokenizer, FACTS)


def grow(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]


@given(st.text())
def test_pieces_join_to_the_text_and_none_is_broken(text: str) -> None:
    pieces = grow(DECODER.detokenizer(), ENCODER.encode(text))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text_come_out_and_hold_nothing_up(content: bytes) -> None:
    alphabet = {symbol: BYTES.convert_tokens_to_ids(symbol) for symbol in _byte_symbols()}
    ids = [alphabet[_byte_symbols()[byte]] for byte in content]
    pieces = grow(DECODER.detokenizer(), ids)
    assert "".join(pieces) == content.decode(errors="replace")


def test_a_half_character_is_held_back() -> None:
    detokenizer = DECODER.detokenizer()
    assert [detokenizer.push([token]) for token in ENCODER.encode("é✓")] == ["", "é", "", "", "✓"]


@given(
    st.text(alphabet="ab✓", max_size=12),
    st.lists(st.text(alphabet="ab✓", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
def test_text_ends_at_the_first_stop_string(text: str, stops: list[str], portions: list[int]) -> None:
    detokenizer = DECODER.detokenizer(stops)
    ids = ENCODER.encode(text)
    given_out = ""
    for portion in cycle(portions):
        if not ids:
            break
        given_out += detokenizer.push(ids[:portion])
        ids = ids[portion:]
        # What is out may never have to be taken back.
        assert text.startswith(given_out)
        assert not any(stop in given_out for stop in stops)
    given_out += detokenizer.finish()
    # Whichever stop string is complete first ends the text.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if ends:
        assert given_out == text[: min(ends)[1]]
        assert detokenizer.stopped in stops
    else:
        assert given_out == text
        assert detokenizer.stopped is None


def test_nothing_follows_a_stop_string() -> None:
    detokenizer = DECODER.detokenizer(["END"])
    assert detokenizer.push(ENCODER.encode("one EN")) == "one "
    assert detokenizer.push(ENCODER.encode("D two")) == ""
    assert detokenizer.stopped == "END"
    assert detokenizer.push(ENCODER.encode("three")) + detokenizer.finish() == ""


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = [*ENCODER.encode("hi"), 257]
    assert "".join(grow(DECODER.detokenizer(), ids)) == "hi"
    assert "".join(grow(DECODER.detokenizer(skip_special_tokens=False), ids)) == "hi<|end|>"


def test_chat_goes_through_the_models_own_template() -> None:
    ids = ENCODER.encode_chat([{"role": "user", "content": "hé"}])
    assert DECODER.decode(ids, skip_special_tokens=False) == "<|begin|><|user|>hé<|assistant|>"
    assert ids.count(256) == 1


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot encode this text"):
        ENCODER.encode("ab\ud800")
    with pytest.raises(InvalidRequest, match="at least one message"):
        ENCODER.encode_chat([])
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        ENCODER.encode_chat([{"content": "no role"}])
    with pytest.raises(InvalidRequest, match="must not be empty"):
        DECODER.detokenizer([""])
    without = Encoder(BYTES.backend_tokenizer, replace(FACTS, template=None))
    with pytest.raises(InvalidRequest, match="no chat template"):
        without.encode_chat([{"role": "user", "content": "x"}])


def test_loading_finds_what_ends_an_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadCheckpoint, match="tokenizer cannot be read"):
        CheckpointTokenizer.load(tmp_path, 320)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    assert CheckpointTokenizer.load(tmp_path, 320).stop_token_ids == {257}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    loaded = CheckpointTokenizer.load(tmp_path, 320)
    assert loaded.stop_token_ids == {5, 6, 257}
    assert loaded.backend.decode(loaded.backend.encode("wörld")) == "wörld"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 320, -1, true]}')
    with caplog.at_level("WARNING"):
        assert CheckpointTokenizer.load(tmp_path, 320).stop_token_ids == {5, 257}
    assert "eos_token_id 320 is ignored: the model has token ids 0 to 319" in caplog.text
    # The tokenizer's own may be beyond the model's rows.
    assert CheckpointTokenizer.load(tmp_path, 257).stop_token_ids == {5}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json: damaged"):
        CheckpointTokenizer.load(tmp_path, 320)


def _byte_symbols() -> list[str]:
    """The symbol of each byte in a byte-level vocabulary: itself if printable, else the next one free from
    U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    symbols, others = [], 0
    for byte in range(256):
        symbols.append(chr(byte) if byte in printable else chr(256 + others))
        others += byte not in printable
    return symbols


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "said"), [("[]", "damaged"), ("{", "damaged"), ("", "damaged"), (POINTER, "git lfs pull")]
)
def test_the_damaged_file_of_a_tokenizer_is_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(BadCheckpoint, match=rf"/{name}: .*{said}"):
        CheckpointTokenizer.load(tmp_path, 320)


def test_a_pointer_in_the_place_of_pieces_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.model").write_text(POINTER)
    with pytest.raises(BadCheckpoint, match=r"/tokenizer\.model: .*git lfs pull"):
        CheckpointTokenizer.load(tmp_path, 320)
