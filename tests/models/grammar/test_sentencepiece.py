"""Vocabularies as SentencePiece makes them: pieces begin with a space, and bytes stand for what has no piece.
Documents that are drawn from them are valid as they are read by the model's own decoder."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import jsonschema
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models.grammar.random_schemas import random_schema
from tokenmux.core.errors import UnsupportedModel
from tokenmux.core.grammar import Grammar
from tokenmux.messages.mask_messages import MaskQuestion
from tokenmux.models.grammar.matchers import Matchers
from tokenmux.models.grammar.translation import source_of
from tokenmux.models.grammar.vocabulary import Vocabulary
from tokenmux.models.text.decoder import Decoder
from tokenmux.models.text.text_files import write_text_files

MARKS = ("<unk>", "<s>", "</s>")
END = MARKS.index("</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PIECES = (
    *(
        "▁",
        "▁▁",
        "▁▁▁▁",
        "▁{",
        '▁"',
        '{"',
        '":',
        '",',
        '▁"name',
        "name",
        "id",
        "größe",
        "▁[",
        "],",
        "}}",
        '"}',
    ),
    *("▁true", "true", "fal", "se", "null", "▁1", "12", ".5", "-", "e", "▁the", "ç", "▁ç", "✓", "\\", "\\u"),
    *(chr(code) for code in range(0x21, 0x7F) if chr(code) not in "-e\\"),
)
MOST_TOKENS = 400


def llama() -> Tokenizer:
    """As Llama 2 and Mistral: BPE with a byte for what has no piece."""
    words = (*MARKS, *BYTES, *PIECES)
    core = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>"
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment]
    core.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core


def unigram() -> Tokenizer:
    """As T5 and its kind: likelihoods of pieces, and spaces by a pre-tokenizer."""
    words = [(word, -float(i)) for i, word in enumerate((*MARKS, *BYTES, *PIECES))]
    core = Tokenizer(models.Unigram(words, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])  # type: ignore[assignment]
    return core


def no_bytes() -> Tokenizer:
    """As ALBERT and older ones: what has no piece is unknown."""
    core = Tokenizer(
        models.Unigram([(word, -float(i)) for i, word in enumerate((*MARKS, *PIECES))], unk_id=0)
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    core.decoder = decoders.Metaspace()  # type: ignore[assignment]
    return core


def entry(folder: Path, core: Tokenizer) -> int:
    """Write a model's text files. Returns the size of its vocabulary."""
    core.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    size: int = core.get_vocab_size()
    backend = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    write_text_files(folder, backend, vocab_size=size, stop_token_ids=frozenset({END}))
    return size


@pytest.mark.parametrize("make", [llama, unigram])
def test_documents_that_end_by_themselves_are_valid(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    core = make()
    size = entry(tmp_path, core)
    vocabulary, decoder = Vocabulary.load(tmp_path, size), Decoder.load(tmp_path)
    assert vocabulary.end_token_ids == (END,)
    rng = Random(1)
    n_ended, used = 0, set[int]()
    for _ in range(60):
        schema = random_schema(rng, 2)
        tokens = drawn(vocabulary, schema, rng)
        if tokens is None:
            continue
        text = decoder.detokenizer(prompt=[size - 1])
        document = text.push(tokens) + text.finish()
        jsonschema.validate(json.loads(document), schema)
        n_ended += 1
        used |= set(tokens)
    assert n_ended > 45
    assert not used & {0, 1, END}, "marks are no text"
    words = {core.id_to_token(token) for token in used}
    assert words & {*BYTES}
    assert any(word.startswith("▁") and len(word) > 1 for word in words)


def test_a_vocabulary_without_bytes_is_refused(tmp_path: Path) -> None:
    """What has no piece could not be written, also where a grammar demands it."""
    size = entry(tmp_path, no_bytes())
    with pytest.raises(UnsupportedModel, match=r"the spelling of .* is not known"):
        Vocabulary.load(tmp_path, size)


def drawn(vocabulary: Vocabulary, schema: dict[str, object], rng: Random) -> list[int] | None:
    """Tokens drawn by chance, which prefer to end; None if they did not in time."""
    grammar = Grammar.of(source_of("json_schema", json.dumps(schema)))
    matchers = Matchers(vocabulary)
    matchers.add(grammar)
    output: list[int] = []
    for _ in range(MOST_TOKENS):
        mask = matchers.mask(MaskQuestion(grammar.id, tuple(output)))
        assert not mask.error, mask.error
        bits = np.unpackbits(np.frombuffer(mask.bits, np.uint8), count=vocabulary.size, bitorder="little")
        allowed = [int(token) for token in np.flatnonzero(bits)]
        if END in allowed and (allowed == [END] or rng.random() < 0.5):
            return output
        output.append(rng.choice([token for token in allowed if token != END]))
    return None
