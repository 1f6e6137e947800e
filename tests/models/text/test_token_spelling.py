"""The bytes of tokens, for every kind of vocabulary."""

import pytest

from tests.models.text.test_detokenizer import BYTE_LEVEL, KINDS, LLAMA, SPECIAL
from tokenmux.models.text.token_spelling import spelling_of


def test_bytes_of_a_byte_level_vocabulary_make_up_the_text() -> None:
    tokenizer = BYTE_LEVEL.tokenizer
    spelled = {BYTE_LEVEL.spell(token) for token in range(256)}
    assert spelled == {bytes((byte,)) for byte in range(256)}
    assert all(
        tokenizer.decode([token]) == BYTE_LEVEL.spell(token).decode("utf-8", "replace")
        for token in range(256)
    )


def test_spaces_and_single_bytes_of_a_vocabulary_of_words() -> None:
    found = {text: LLAMA.spell(LLAMA.tokenizer.token_to_id(text)) for text in ("▁a", "✓", "<0xE2>")}
    assert found == {"▁a": b" a", "✓": "✓".encode(), "<0xE2>": b"\xe2"}


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_spell_their_names(kind: str) -> None:
    text = KINDS[kind]
    for name in (*SPECIAL, "<tool>"):
        token = text.tokenizer.token_to_id(name)
        assert token is not None
        assert text.spell(token) == name.encode()
    assert text.spell(10**6) == b""


def test_the_middle_of_a_word() -> None:
    assert spelling_of({"WordPiece"})("##ing") == b"ing"
    assert spelling_of(())("▁") == "▁".encode()
