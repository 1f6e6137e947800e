"""`tokenmux generate` and `tokenmux chat`: text from a served model."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from tokenmux.cli.generation_options import (
    BadWord,
    CacheSalt,
    Choices,
    ChosenTool,
    FrequencyPenalty,
    GrammarFile,
    JsonSchema,
    LogitBias,
    Logprobs,
    LogprobsOfPrompt,
    MaxTokens,
    MinP,
    NoPrefixCache,
    OneOf,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Tools,
    TopK,
    TopP,
    generate_options,
    tool_options,
)
from tokenmux.cli.remote import connected
from tokenmux.cli.shared_options import ModelArgument


def generate_command(
    ctx: typer.Context,
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue; - reads it from stdin.")],
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    logit_bias: LogitBias = None,
    bad_word: BadWord = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    choice: OneOf = None,
    no_prefix_cache: NoPrefixCache = False,
    cache_salt: CacheSalt = None,
    logprobs: Logprobs = None,
    prompt_logprobs: LogprobsOfPrompt = None,
    choices: Choices = None,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt first.")] = False,
    include_stop: Annotated[
        bool, typer.Option("--include-stop", help="Print the text of --stop that ended the answer.")
    ] = False,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="Print special tokens of the answer.")
    ] = False,
    truncate: Annotated[
        int | None,
        typer.Option(min=1, max=2**32 - 1, help="Keep only this many tokens of the prompt, the last ones."),
    ] = None,
    request_id: Annotated[str, typer.Option(help="An id for the request, to find it in logs.")] = "",
    stats: Annotated[bool, typer.Option("--stats", help="Print token counts and times to stderr.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the whole answer as one JSON document.")
    ] = False,
) -> None:
    """Continue a text and print the continuation as it arrives."""
    from tokenmux.cli.streaming import show_choices, show_stream, summary_line
    from tokenmux.cli.tables import as_json

    options = generate_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=logit_bias,
        bad_word=bad_word,
        json_schema=json_schema,
        regex=regex,
        grammar=grammar,
        choice=choice,
        no_prefix_cache=no_prefix_cache,
        cache_salt=cache_salt,
        logprobs=logprobs,
    )
    options |= {
        "echo": echo,
        "include_stop_string": include_stop,
        "keep_special_tokens": special_tokens,
        "truncate_prompt_tokens": truncate,
        "request_id": request_id,
        "n": choices,
        "prompt_logprobs": prompt_logprobs,
    }
    errors = Console(stderr=True)
    with connected(ctx) as client:
        text = sys.stdin.read() if prompt == "-" else prompt
        if json:
            typer.echo(as_json(client.generate(model, text, **options)))
            return
        if choices is not None and choices > 1:
            finishes = show_choices(client.generate(model, text, **options), errors)
        else:
            finish = show_stream(client.stream(model, text, **options), errors).finish
            finishes = [] if finish is None else [finish]
    for finish in finishes if stats else ():
        errors.print(summary_line(finish), style="dim", highlight=False)


def chat_command(
    ctx: typer.Context,
    model: ModelArgument,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = None,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    repetition_penalty: RepetitionPenalty = None,
    frequency_penalty: FrequencyPenalty = 0.0,
    presence_penalty: PresencePenalty = 0.0,
    logit_bias: LogitBias = None,
    bad_word: BadWord = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    grammar: GrammarFile = None,
    choice: OneOf = None,
    no_prefix_cache: NoPrefixCache = False,
    cache_salt: CacheSalt = None,
    tools: Tools = None,
    tool_choice: ChosenTool = None,
) -> None:
    """Chat with a model, one line at a time. Ctrl-C cancels an answer, Ctrl-D quits."""
    from tokenmux.cli.streaming import converse

    options = generate_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=logit_bias,
        bad_word=bad_word,
        json_schema=json_schema,
        regex=regex,
        grammar=grammar,
        choice=choice,
        no_prefix_cache=no_prefix_cache,
        cache_salt=cache_salt,
    )
    options |= tool_options(tools, tool_choice)
    with connected(ctx) as client:
        converse(client, model, system, Console(stderr=True), options)
