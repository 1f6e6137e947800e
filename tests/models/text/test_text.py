"""Text in and out: encoding, chat templates, and text that grows token by token."""

from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.core.errors import BadCheckpoint, InvalidRequest
from tokenmux.models.catalogue import tiny
from tokenmux.models.text.tokenizer import Detokenizer, Tokenizer

BYTES = Tokenizer(tiny.byte_tokenizer(), tiny.VOCAB_SIZE, {257})
"""Each byte is a token, so that every character of more than one byte spans tokens."""


def grow(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push([token]) for token in ids), detokenizer.finish()]


@given(st.text())
def test_pieces_join_to_the_text_and_none_is_broken(text: str) -> None:
    pieces = grow(BYTES.detokenizer(), BYTES.encode(text))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text_come_out_and_hold_nothing_up(content: bytes) -> None:
    alphabet = {symbol: BYTES.backend.convert_tokens_to_ids(symbol) for symbol in _byte_symbols()}
    ids = [alphabet[_byte_symbols()[byte]] for byte in content]
    pieces = grow(BYTES.detokenizer(), ids)
    assert "".join(pieces) == content.decode(errors="replace")


def test_a_half_character_is_held_back() -> None:
    detokenizer = BYTES.detokenizer()
    assert [detokenizer.push([token]) for token in BYTES.encode("é✓")] == ["", "é", "", "", "✓"]


@given(
    st.text(alphabet="ab✓", max_size=12),
    st.lists(st.text(alphabet="ab✓", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
def test_text_ends_at_the_first_stop_string(text: str, stops: list[str], portions: list[int]) -> None:
    detokenizer = BYTES.detokenizer(stops)
    ids = BYTES.encode(text)
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
    detokenizer = BYTES.detokenizer(["END"])
    assert detokenizer.push(BYTES.encode("one EN")) == "one "
    assert detokenizer.push(BYTES.encode("D two")) == ""
    assert detokenizer.stopped == "END"
    assert detokenizer.push(BYTES.encode("three")) + detokenizer.finish() == ""


def test_special_tokens_are_left_out_unless_asked_for() -> None:
    ids = [*BYTES.encode("hi"), 257]
    assert "".join(grow(BYTES.detokenizer(), ids)) == "hi"
    assert "".join(grow(BYTES.detokenizer(skip_special_tokens=False), ids)) == "hi<|end|>"


def test_chat_goes_through_the_models_own_template() -> None:
    ids = BYTES.encode_chat([{"role": "user", "content": "hé"}])
    assert BYTES.decode(ids, skip_special_tokens=False) == "<|begin|><|user|>hé<|assistant|>"
    assert ids.count(256) == 1


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"not valid Unicode \(character 2\)"):
        BYTES.encode("ab\ud800")
    with pytest.raises(InvalidRequest, match="at least one message"):
        BYTES.encode_chat([])
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        BYTES.encode_chat([{"content": "no role"}])
    with pytest.raises(InvalidRequest, match="must not be empty"):
        BYTES.detokenizer([""])
    without = tiny.byte_tokenizer()
    without.chat_template = None
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer(without, tiny.VOCAB_SIZE, ()).encode_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("bad", [-1, tiny.VOCAB_SIZE])
def test_token_ids_out_of_range_are_refused(bad: int) -> None:
    BYTES.check_token_ids([0, tiny.VOCAB_SIZE - 1])
    with pytest.raises(InvalidRequest, match=f"token id {bad} at index 1 is out of range: ids are 0 to 319"):
        BYTES.check_token_ids([5, bad])


def test_loading_finds_what_ends_an_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadCheckpoint, match="tokenizer cannot be read"):
        Tokenizer.load(tmp_path, 320)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path, 320).stop_token_ids == {257}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    loaded = Tokenizer.load(tmp_path, 320)
    assert loaded.stop_token_ids == {5, 6, 257}
    assert loaded.decode(loaded.encode("wörld")) == "wörld"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 320, -1, true]}')
    with caplog.at_level("WARNING"):
        assert Tokenizer.load(tmp_path, 320).stop_token_ids == {5, 257}
    assert "eos_token_id 320 is ignored: the model has token ids 0 to 319" in caplog.text
    # The tokenizer's own may be beyond the model's rows.
    assert Tokenizer.load(tmp_path, 257).stop_token_ids == {5}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json: damaged"):
        Tokenizer.load(tmp_path, 320)


def _byte_symbols() -> list[str]:
    """The symbol of each byte in a byte-level vocabulary: itself if printable, else the next one free from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    symbols, others = [], 0
    for byte in range(256):
        symbols.append(chr(byte) if byte in printable else chr(256 + others))
        others += byte not in printable
    return symbols
