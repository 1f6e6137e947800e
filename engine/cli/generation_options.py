"""Options of `tokenmux generate` and `tokenmux chat`, and what the client is told of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenmux.core.file_faults import reading_fault

if TYPE_CHECKING:
    from tokenmux.client import GenerateOptions

_INT32 = 2**31 - 1
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        "-n",
        min=0,
        max=_INT32,
        help="Most tokens to generate; 0: none, to score the prompt. Default: the server's.",
    ),
]
Temperature = Annotated[float, typer.Option("--temperature", "-t", help="Sampling temperature; 0: greedy.")]
TopK = Annotated[
    int, typer.Option(min=0, max=_INT32, help="Sample from the k most likely tokens; 0: no limit.")
]
TopP = Annotated[
    float | None, typer.Option(help="Sample from the most likely tokens with this total probability.")
]
MinP = Annotated[
    float,
    typer.Option(help="Sample from tokens at least this times as likely as the first; 0: no limit."),
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same tokens.")]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Text that ends the answer. Repeatable.")
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Make tokens of prompt and answer less likely by this factor; 1: none.")
]
FrequencyPenalty = Annotated[
    float, typer.Option(help="Make tokens less likely each time that they were drawn, -2 to 2.")
]
PresencePenalty = Annotated[
    float, typer.Option(help="Make tokens less likely once they were drawn, -2 to 2.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(metavar="ID:BIAS", help="Make a token id likelier (up to 100) or less (-100). Repeatable."),
]
BadWord = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Text that the answer must not contain. Repeatable.")
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help="Answer with JSON that meets the schema in FILE."
    ),
]
Regex = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Answer with text that matches the whole pattern.")
]
GrammarFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Answer with a sentence of the grammar in FILE, in the format of Lark or GBNF.",
    ),
]
OneOf = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="Answer with one of these texts. Repeatable.")
]

NoPrefixCache = Annotated[
    bool,
    typer.Option("--no-prefix-cache", help="Neither use what the server has kept of prompts nor add to it."),
]
CacheSalt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT", help="Share what the server keeps of the prompt with requests of the same salt only."
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        min=0, max=20, help="Print each token's log-probability, and its N likeliest ones, to stderr."
    ),
]


LogprobsOfPrompt = Annotated[
    int | None,
    typer.Option(min=0, max=20, help="The same for the tokens of the prompt."),
]
Choices = Annotated[
    int | None,
    typer.Option(min=1, max=_INT32, help="Print this many answers, each when all are complete."),
]

Tools = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Offer the tools in FILE, a JSON list as OpenAI has it. Lines answer calls in turn.",
    ),
]
ChosenTool = Annotated[
    str | None,
    typer.Option(
        metavar="CHOICE", help="auto, none, required, text (calls stay in the answer), or the name of a tool."
    ),
]


def tool_options(tools: Path | None, choice: str | None) -> "GenerateOptions":
    """The client's options about tools. Raises BadParameter for a file that is not a JSON list of objects."""
    options: GenerateOptions = {}
    if tools is not None:
        try:
            found = json.loads(_content(tools) or "")
        except ValueError as error:
            raise typer.BadParameter(f"{tools}: is not JSON: {error}") from None
        if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
            said = 'is not a list of tools: write [{"type": "function", "function": {...}}]'
            raise typer.BadParameter(f"{tools}: {said}")
        options["tools"] = found
    if choice is not None:
        named = {"type": "function", "function": {"name": choice}}
        options["tool_choice"] = choice if choice in ("auto", "none", "required", "text") else named
    return options


def generate_options(
    *,
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float | None,
    min_p: float,
    seed: int | None,
    stop: Sequence[str] | None,
    repetition_penalty: float | None,
    frequency_penalty: float,
    presence_penalty: float,
    logit_bias: Sequence[str] | None,
    bad_word: Sequence[str] | None,
    json_schema: Path | None = None,
    regex: str | None = None,
    grammar: Path | None = None,
    choice: Sequence[str] | None = None,
    logprobs: int | None = None,
    no_prefix_cache: bool = False,
    cache_salt: str | None = None,
) -> "GenerateOptions":
    """The client's options. Raises BadParameter for a bias that is not ID:BIAS, or a file that cannot be
    read."""
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or [],
        "repetition_penalty": repetition_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "logit_bias": dict(map(_bias, logit_bias or ())),
        "bad_words": bad_word or [],
        "json_schema": _content(json_schema),
        "regex": regex,
        "grammar": _content(grammar),
        "choice": choice or None,
        "logprobs": logprobs,
        "prefix_cache": not no_prefix_cache,
        "cache_salt": cache_salt,
    }


def _content(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: cannot be read: {reading_fault(error)}") from None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition(":")
    try:
        return int(token), float(bias)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a bias: write ID:BIAS, such as 42:-100") from None
