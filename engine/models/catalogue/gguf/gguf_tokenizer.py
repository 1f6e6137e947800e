"""The tokenizer of a GGUF file: byte-level vocabularies (`gpt2`) and SentencePiece's (`llama`), built from
the metadata."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.catalogue.gguf import splits
from tokenmux.models.catalogue.gguf.gguf_end_tokens import gguf_end_tokens, token_id
from tokenmux.models.catalogue.gguf.keys import Keys
from tokenmux.models.foreign_errors import foreign_errors_as

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_TYPES = range(_NORMAL, _BYTE + 1)
_NO_TEXT = (_UNKNOWN, _CONTROL, _UNUSED, _BYTE)
_SPACE = "▁"
_GEMMA = ("gemma", "gemma2", "gemma3")
_LONGEST = 1024
"""Longest token in characters. Every division of a piece is tried, so longer tokens are refused."""
_WITHOUT_EFFECT = (
    # Tokens that are neither added nor end an output.
    "ggml.seperator_token_id",
    "ggml.mask_token_id",
    "ggml.cls_token_id",
    *(f"ggml.fim_{part}_token_id" for part in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *(f"ggml.{part}_token_id" for part in ("prefix", "suffix", "middle", "fsep")),
    *(f"ggml.add_{part}_token" for part in ("padding", "unknown", "mask")),
    "ggml.token_type_count",
    "huggingface.json",
    "rwkv.world",
    "chat_templates",
)


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A tokenizer, the ids that end an output, and the id that begins a text."""

    backend: PreTrainedTokenizerFast
    end_ids: tuple[int, ...]
    begin_id: int | None


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    keys: Keys
    tokens: tuple[str, ...]
    types: tuple[int, ...]

    def of_type(self, *types: int) -> frozenset[int]:
        return frozenset(number for number, kind in enumerate(self.types) if kind in types)


def read_tokenizer(file: Path, metadata: Mapping[str, Any], architecture: str, n_rows: int) -> GgufTokenizer:
    """Build the tokenizer; `n_rows` is the number of tokens that the embedding has.

    Raises BadCheckpoint or UnsupportedModel.
    """
    keys = Keys(file, metadata, "tokenizer")
    tokens = keys.several("ggml.tokens", str)
    if not tokens or len(tokens) > n_rows:
        keys.bad("ggml.tokens", f"has {len(tokens)} tokens, and the embedding has {n_rows}")
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        keys.bad("ggml.tokens", f"has {twice[:40]!r} twice")
    if (longest := max(map(len, tokens))) > _LONGEST:
        keys.bad("ggml.tokens", f"has a token of {longest} characters")
    types = (
        keys.several("ggml.token_type", int, len(tokens))
        if "ggml.token_type" in keys
        else [_NORMAL] * len(tokens)
    )
    if (odd := next((kind for kind in types if kind not in _TYPES), None)) is not None:
        keys.bad("ggml.token_type", f"has {odd}; types are {_TYPES[0]} to {_TYPES[-1]}")
    vocabulary = _Vocabulary(keys, tuple(tokens), tuple(types))
    model = keys.text("ggml.model")
    if model == "gpt2":
        core, begins, default_end = _byte_level(vocabulary)
        begin = token_id(keys, "ggml.bos_token_id", len(tokens)) if "ggml.bos_token_id" in keys else None
    elif model == "llama":
        core, begins, default_end = (
            _sentencepiece(vocabulary, architecture),
            True,
            2 if len(tokens) > 2 else None,
        )
        begin = token_id(keys, "ggml.bos_token_id", len(tokens)) if "ggml.bos_token_id" in keys else 1
    else:
        keys.unsupported("ggml.model", f"is {model[:40]!r}")
    ends = gguf_end_tokens(keys, tokens, vocabulary.of_type(_CONTROL), default_end)
    special = vocabulary.of_type(_CONTROL, _UNKNOWN) | set(ends)
    if "ggml.token_type" not in keys and begin is not None and begin < len(tokens):
        special |= {begin}
    _add_special(core, vocabulary, special)
    backend = _dressed(core, vocabulary, special, begin, begins=begins)
    keys.expect("ggml.add_sep_token", False)
    keys.expect("ggml.remove_extra_whitespaces", False)
    keys.ignore(
        *_WITHOUT_EFFECT, *(key.removeprefix("tokenizer.") for key in metadata if ".chat_template." in key)
    )
    keys.refuse_rest()
    return GgufTokenizer(backend, ends, begin)


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool, int | None]:
    keys = vocabulary.keys
    name = keys.text("ggml.pre")
    splitter = splits.split(name)
    if splitter is None:
        raise UnsupportedModel(
            f"{keys.file}: tokenizer.ggml.pre is {name[:40]!r}; the ways to split text that are known are "
            f"{', '.join(splits.known())}"
        )
    merges = [_pair(keys, merge) for merge in keys.several("ggml.merges", str)]
    ids = {text: number for number, text in enumerate(vocabulary.tokens)}
    core = Tokenizer(_bpe(keys, ids, merges, ignore_merges=name in splits.WHOLE_WORDS))
    core.pre_tokenizer = splitter
    core.decoder = decoders.ByteLevel()
    keys.expect("ggml.add_space_prefix", False)
    keys.ignore("ggml.scores")  # byte pairs are merged by rank
    return core, name in splits.WHOLE_WORDS, None


def _pair(keys: Keys, merge: str) -> tuple[str, str]:
    # A part may begin with a space of its own: the first one after the first character divides.
    at = merge.find(" ", 1)
    if at < 0 or at + 1 == len(merge):
        keys.bad("ggml.merges", f"has {merge[:40]!r}, which is not a pair")
    return merge[:at], merge[at + 1 :]


def _sentencepiece(vocabulary: _Vocabulary, architecture: str) -> Tokenizer:
    keys = vocabulary.keys
    keys.ignore("ggml.pre")  # there is only one way to split
    scores = keys.several("ggml.scores", float, len(vocabulary.tokens))
    if any(math.isnan(score) for score in scores):
        keys.bad("ggml.scores", "has values that are not numbers")
    tokens = list(vocabulary.tokens)
    if architecture in _GEMMA:
        # Tokens of several spaces are stored as such, and pieces are merged in the order of the vocabulary.
        tokens = [_SPACE * len(text) if len(text) > 1 and not text.strip(" ") else text for text in tokens]
        scores = [-float(number) for number in range(len(tokens))]
    ids = {text: number for number, text in enumerate(tokens)}
    unknown = token_id(keys, "ggml.unknown_token_id", len(tokens)) if "ggml.unknown_token_id" in keys else 0
    merges = (
        [_pair(keys, merge) for merge in keys.several("ggml.merges", str)]
        if "ggml.merges" in keys
        else _merges(ids, scores, vocabulary.of_type(*_NO_TEXT))
    )
    core = Tokenizer(_bpe(keys, ids, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True))
    prefix = keys.flag("ggml.add_space_prefix", architecture not in _GEMMA)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        spaces.insert(0, normalizers.Prepend(_SPACE))
        steps.append(decoders.Strip(" ", 1, 0))
    core.normalizer = normalizers.Sequence(spaces)
    core.decoder = decoders.Sequence(steps)
    return core


def _merges(
    ids: Mapping[str, int], scores: Sequence[float], no_text: frozenset[int]
) -> list[tuple[str, str]]:
    """The merges of a SentencePiece vocabulary, which joins the two neighbours whose joined piece scores
    best.

    Every division of a piece is a merge with that piece's rank.
    """
    pieces = {text: number for text, number in ids.items() if number not in no_text}
    found: list[tuple[float, int, int, str, str]] = []
    for text, number in pieces.items():
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in pieces and right in pieces:
                found.append((scores[number], number, at, left, right))
    found.sort(key=lambda merge: (-merge[0], merge[1], pieces[merge[3]], pieces[merge[4]]))
    return [(left, right) for _, _, _, left, right in found]


def _bpe(keys: Keys, ids: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    with foreign_errors_as(
        lambda error: BadCheckpoint(
            f"{keys.file}: tokenizer.ggml.merges does not fit the vocabulary ({error})"
        )
    ):
        return models.BPE(vocab=ids, merges=merges, **options)


def _add_special(core: Tokenizer, vocabulary: _Vocabulary, special: frozenset[int]) -> None:
    """Add tokens that stand for themselves in text: `special` ones, hidden in outputs, and user-defined
    ones."""
    texts = core.get_vocab(with_added_tokens=False)
    hidden, plain = [], []
    for number, text in enumerate(vocabulary.tokens):
        if number in special:
            hidden.append(AddedToken(text, normalized=False, special=True))
        elif vocabulary.types[number] == _USER_DEFINED and text in texts:
            plain.append(AddedToken(text, normalized=False, special=False))
    core.add_special_tokens(hidden)
    core.add_tokens(plain)
    if core.get_vocab_size(with_added_tokens=True) != len(vocabulary.tokens):
        vocabulary.keys.bad(
            "ggml.tokens", "has a control token that cannot be distinguished from another token"
        )


def _dressed(
    core: Tokenizer, vocabulary: _Vocabulary, special: frozenset[int], begin: int | None, *, begins: bool
) -> PreTrainedTokenizerFast:
    """The tokenizer as a transformers object: BOS and EOS added as the file says, with its chat template."""
    keys, tokens = vocabulary.keys, vocabulary.tokens
    named = {
        "bos_token": begin,
        # Unused here, and out of range in some files: -1, or one past the last.
        "pad_token": keys.raw("ggml.padding_token_id"),
        "unk_token": keys.raw("ggml.unknown_token_id"),
    }
    # transformers hides all tokens that it has a name for, and never divides or joins them. An ordinary token
    # under such a key (padding is often just 0) stays what it is.
    apart = special | vocabulary.of_type(_USER_DEFINED)
    names = {name: tokens[n] for name, n in named.items() if type(n) is int and n in apart}
    if "ggml.eos_token_id" in keys:
        names["eos_token"] = tokens[token_id(keys, "ggml.eos_token_id", len(tokens))]
    first = None if begin is None else tokens[begin] if begin < len(tokens) else None
    before = _added(keys, "bos", first, keys.flag("ggml.add_bos_token", begins))
    after = _added(keys, "eos", names.get("eos_token"), keys.flag("ggml.add_eos_token", False))
    if before or after:
        core.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", "$B", *after],
            special_tokens=[(text, core.token_to_id(text)) for text in dict.fromkeys(before + after)],
        )
    backend = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, clean_up_tokenization_spaces=False, **names
    )
    if "chat_template" in keys:
        template = keys.text("chat_template")
        with_tools = "chat_template.tool_use"
        backend.chat_template = (
            {"default": template, "tool_use": keys.text(with_tools)} if with_tools in keys else template
        )
    return backend


def _added(keys: Keys, which: str, text: str | None, wanted: bool) -> list[str]:
    if not wanted:
        return []
    if text is None:
        keys.bad(f"ggml.{which}_token_id", "is missing, and such a token is to be added to texts")
    return [text]
