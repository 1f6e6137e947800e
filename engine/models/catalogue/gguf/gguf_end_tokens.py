"""The tokens that end an output: by the file's keys, and by their text if converters leave the keys out.

Base models' files name one end token; those of chat models often name the end of a text, but not that of a
turn. Like llama.cpp, this finds them by their text. llama.cpp's ends of fill-in-the-middle (padding,
repository, file) are not used.
"""

from collections.abc import Sequence

from tokenmux.models.catalogue.gguf.keys import Keys

_BY_KEY = ("ggml.eos_token_id", "ggml.eot_token_id", "ggml.eom_token_id")
_BY_TEXT = frozenset(
    (
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend▁of▁sentence\uff5c>",
    )
)
_BY_TEXT_IF_CONTROL = frozenset(("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~["))
"""Texts that a vocabulary may also hold as ordinary words. They count only if the file marks them as control
tokens."""


def gguf_end_tokens(
    keys: Keys, tokens: Sequence[str], control: frozenset[int], default: int | None
) -> tuple[int, ...]:
    """Ids that end an output, sorted; `default` stands for a missing end-of-text key.

    Raises BadCheckpoint for an id that is not a token.
    """
    ends = set()
    for name in _BY_KEY:
        if name in keys:
            ends.add(token_id(keys, name, len(tokens)))
    if default is not None and "ggml.eos_token_id" not in keys:
        ends.add(default)
    texts = {text: number for number, text in enumerate(tokens)}
    ends |= {texts[text] for text in _BY_TEXT & texts.keys()}
    ends |= {texts[text] for text in _BY_TEXT_IF_CONTROL & texts.keys() if texts[text] in control}
    marks = {tokens[number] for number in ends}
    if {"<|return|>", "<|call|>"} <= marks or {"<|calls|>", "<|flush|>"} <= marks:
        # These end one message of several: the output continues.
        ends.discard(texts.get("<|end|>", -1))
    return tuple(sorted(ends))


def token_id(keys: Keys, name: str, n_tokens: int) -> int:
    """The token id under a key. Raises BadCheckpoint if it is missing or not in the vocabulary."""
    number = keys.integer(name, least=0)
    if number >= n_tokens:
        keys.bad(name, f"is {number}, and there are {n_tokens} tokens")
    return number
