"""Text that grows token by token equals the decoding of all tokens at once, for every kind of tokenizer."""

from collections.abc import Callable, Sequence
from itertools import cycle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tokenmux.models.text.detokenizer import Detokenizer
from tokenmux.models.text.text_stream import TextStream, TokenText

WORDS = ("a", "b", ".", " ", "é", "✓", "\ufffd", "", "▁", "▁a", "▁▁", "##b", "b</w>", "it's", " .", "▁✓")
SPECIAL = ("<|end|>", "<|user|>", "<|end")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
UNKNOWN = 5000
"""An id that no tokenizer here has; it has no text."""


def by_word(decoder: object, *, byte_fallback: bool = False) -> TokenText:
    """A vocabulary of words, and of one token for each byte with `byte_fallback`."""
    vocabulary = {word: i for i, word in enumerate((*WORDS, *(BYTES if byte_fallback else ())))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=byte_fallback))
    if decoder is not None:
        core.decoder = decoder  # type: ignore[assignment]
    return with_specials(core)


def by_byte() -> TokenText:
    core = Tokenizer(
        models.BPE(
            vocab={symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
            merges=[],
        )
    )
    core.decoder = decoders.ByteLevel()
    return with_specials(core)


def with_specials(core: Tokenizer) -> TokenText:
    core.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    core.add_tokens([AddedToken("<tool>", special=False)])
    return TokenText(core, [core.token_to_id(text) for text in SPECIAL])


LLAMA = by_word(
    decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    byte_fallback=True,
)
GEMMA = by_word(
    decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    byte_fallback=True,
)
BYTE_LEVEL = by_byte()
KINDS: dict[str, TokenText] = {
    "llama": LLAMA,
    "gemma": GEMMA,
    "byte level": BYTE_LEVEL,
    "bytes, then byte level": by_word(
        decoders.Sequence([decoders.ByteFallback(), decoders.ByteLevel()]), byte_fallback=True
    ),
    "metaspace": by_word(decoders.Metaspace()),
    "metaspace, no prefix": by_word(decoders.Metaspace(prepend_scheme="never")),
    "wordpiece": by_word(decoders.WordPiece()),
    "wordpiece, as it is": by_word(decoders.WordPiece(cleanup=False)),
    "end of word": by_word(decoders.BPEDecoder()),
    "none": by_word(None),
}


def whole(tokens: TokenText, ids: Sequence[int]) -> str:
    text: str = tokens.tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


def stream(tokens: TokenText, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    growing = TextStream(tokens, prompt)
    return [*(growing.push(token) for token in ids), growing.finish()]


def ids_of(tokens: TokenText) -> st.SearchStrategy[list[int]]:
    """Sequences of anything, in which runs of bytes, also well-formed ones, are likely."""
    n = tokens.tokenizer.get_vocab_size()
    spelled = st.text(min_size=1, max_size=4).map(lambda text: spell(tokens, text))
    piece = spelled | st.lists(st.integers(0, n - 1) | st.just(UNKNOWN), max_size=6)
    return st.lists(piece, max_size=12).map(lambda pieces: [token for piece in pieces for token in piece])


def spell(tokens: TokenText, text: str) -> list[int]:
    """`text` byte by byte, if the vocabulary has bytes."""
    if tokens.byte_of:
        of_byte = {byte: token for token, byte in tokens.byte_of.items()}
        return [of_byte[byte] for byte in text.encode()]
    if tokens is BYTE_LEVEL:
        symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        return [tokens.tokenizer.token_to_id(symbol) for part, _ in symbols for symbol in part]
    return []


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_pieces_join_to_what_the_tokenizer_decodes(kind: str, data: st.DataObject) -> None:
    ids = data.draw(ids_of(KINDS[kind]))
    assert "".join(stream(KINDS[kind], ids)) == whole(KINDS[kind], ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_an_output_continues_its_prompt(kind: str, data: st.DataObject) -> None:
    """With a last token of the prompt that shows, wherever the prompt began."""
    tokens = KINDS[kind]
    prompt = [*data.draw(ids_of(tokens)), tokens.tokenizer.token_to_id("a")]
    ids = data.draw(ids_of(tokens))
    assert whole(tokens, prompt) + "".join(stream(tokens, ids, prompt)) == whole(tokens, prompt + ids)


def test_a_character_that_an_invalid_byte_cuts_short_is_not_lost() -> None:
    tokens = KINDS["bytes, then byte level"]
    ids = [tokens.tokenizer.token_to_id("é"), tokens.tokenizer.token_to_id("<0x80>")]
    assert "".join(stream(tokens, ids)) == whole(tokens, ids) == "\ufffd\ufffd"


@pytest.mark.parametrize("kind", ["llama", "gemma", "byte level"])
@given(text=st.text(max_size=200))
@example("😀😀 café")
@example("한국어" * 60)
def test_any_text_spelled_in_bytes_comes_out(kind: str, text: str) -> None:
    pieces = stream(KINDS[kind], [*spell(KINDS[kind], "x"), *spell(KINDS[kind], text)])
    assert "".join(pieces) == "x" + text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("tokens", [LLAMA, GEMMA, BYTE_LEVEL])
@given(st.binary(max_size=300))
def test_bytes_that_are_no_text_hold_nothing_up(tokens: TokenText, content: bytes) -> None:
    of_byte = {byte: token for token, byte in tokens.byte_of.items()}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = (
        [of_byte[byte] for byte in content] if of_byte else [len(alphabet) * byte // 256 for byte in content]
    )
    growing = TextStream(tokens)
    n_given = n_out = 0
    for n_given, token in enumerate(ids, start=1):
        n_out += len(growing.push(token).encode())
        # Each byte or U+FFFD is at least one byte of text.
        assert n_given - n_out <= 128 + 4
        assert len(growing._window) <= 128 + 33


def test_a_run_of_byte_tokens_comes_out_when_it_ends() -> None:
    ids = [*spell(LLAMA, "é✓"), LLAMA.tokenizer.token_to_id("a")]
    assert stream(LLAMA, ids) == ["", "", "", "", "", "é✓a", ""]
    assert stream(LLAMA, ids[:4]) == ["", "", "", "", "\ufffd" * 4] == [*[""] * 4, whole(LLAMA, ids[:4])]


def test_a_long_run_comes_out_character_by_character() -> None:
    pieces = stream(LLAMA, spell(LLAMA, "한" * 60))
    assert pieces[127] == "한" * 42
    assert pieces[128:134] == ["한", "", "", "한", "", ""]
    # What is out stays; what is not complete is replaced.
    assert "".join(stream(LLAMA, spell(LLAMA, "한" * 60)[:-1])) == "한" * 59 + "\ufffd\ufffd"


def test_a_character_that_the_prompt_began_is_completed() -> None:
    ids = spell(BYTE_LEVEL, "x✓y")
    assert "".join(stream(BYTE_LEVEL, ids[2:], ids[:2])) == "✓y"


def test_a_window_stays_short_whatever_the_output_is() -> None:
    """Bytes that never end a character, and tokens that never have a text."""
    for tokens, token in ((BYTE_LEVEL, spell(BYTE_LEVEL, "é")[1]), (LLAMA, LLAMA.tokenizer.token_to_id(""))):
        growing = TextStream(tokens)
        given = [growing.push(token) for _ in range(500)]
        assert len(growing._window) <= 33
        assert "".join([*given, growing.finish()]) == whole(tokens, [token] * 500)


# ── stop strings ────────────────────────────────────────────────────────────────────────────────────────────


def detokenize(detokenizer: Detokenizer, ids: list[int], portions: Sequence[int] = (1,)) -> str:
    text = ""
    for portion in cycle(portions):
        if not ids:
            return text + detokenizer.finish()
        text += detokenizer.push(ids[:portion])
        ids = ids[portion:]
    raise AssertionError


def special(tokens: TokenText) -> Callable[[str], int]:
    return tokens.tokenizer.token_to_id


@pytest.mark.parametrize("tokens", [LLAMA, BYTE_LEVEL])
def test_a_stop_string_may_be_a_special_token(tokens: TokenText) -> None:
    end, user = special(tokens)("<|end|>"), special(tokens)("<|user|>")
    ids = [*spell(tokens, "hello"), user, *spell(tokens, "more"), end, *spell(tokens, "rest")]
    for stops, text, stopped in (
        (["<|user|>"], "hello", "<|user|>"),
        (["<|end|>"], "hellomore", "<|end|>"),
        (["<|end|>", "<|user|>m"], "hello", "<|user|>m"),
        (["lo<|user|>"], "hel", "lo<|user|>"),
        (["<|user|><|end|>"], "hellomorerest", None),
        (["more<|end|>r", "st"], "hello", "more<|end|>r"),
        # Other stop strings do not see special tokens.
        (["om", "<|user|><|user|>"], "hell", "om"),
        (["user", ">", "<"], "hellomorerest", None),
    ):
        detokenizer = Detokenizer(tokens, stops)
        assert detokenize(detokenizer, ids) == text, stops
        assert detokenizer.stopped == stopped


def test_special_tokens_that_are_shown_are_text_like_any_other() -> None:
    ids = [*spell(LLAMA, "hi"), special(LLAMA)("<|end|>"), *spell(LLAMA, "x")]
    detokenizer = Detokenizer(LLAMA, ["<|end|>x"], skip_special_tokens=False)
    assert detokenize(detokenizer, ids) == "hi"
    assert detokenize(Detokenizer(LLAMA, ["<|user|>"], skip_special_tokens=False), ids) == "hi<|end|>x"


STOPS = st.lists(st.sampled_from(["a", "b", "<|end|>", "<|user|>", "é", "✓"]), min_size=1, max_size=4).map(
    "".join
)


@given(
    data=st.data(),
    stops=st.lists(STOPS, max_size=3),
    portions=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
@pytest.mark.parametrize("tokens", [LLAMA, BYTE_LEVEL])
def test_portions_do_not_matter(
    tokens: TokenText, data: st.DataObject, stops: list[str], portions: list[int]
) -> None:
    pieces = st.sampled_from(["a", "b", "é", "✓"]).map(lambda text: spell(tokens, text))
    ends = st.sampled_from(SPECIAL[:2]).map(lambda text: [special(tokens)(text)])
    ids = [token for piece in data.draw(st.lists(pieces | ends, max_size=12)) for token in piece]
    one, other = Detokenizer(tokens, stops), Detokenizer(tokens, stops)
    text = detokenize(one, list(ids))
    assert (detokenize(other, list(ids), portions), other.stopped) == (text, one.stopped)
    with_specials = tokens.tokenizer.decode(ids, skip_special_tokens=False)
    if one.stopped is None:
        assert text == whole(tokens, ids)
        assert not any(stop in with_specials for stop in stops if "<" in stop)
    elif "<" in one.stopped:
        assert one.stopped in with_specials
    else:
        assert one.stopped in whole(tokens, ids)
        assert one.stopped not in text
