"""From what a client says that its output must obey to the source of a grammar.

Runs what a stranger wrote through the library's parsers: only in a process that may be killed.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from llguidance import LLMatcher, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from tokenmux.core.errors import InvalidRequest
from tokenmux.models.foreign_errors import foreign_errors_as
from tokenmux.models.grammar.endless import is_endless
from tokenmux.models.grammar.endless_rules import endless_rule

WHITESPACE = r"[ \t\n]{0,40}"
"""Between two tokens of JSON. Without a bound a model can write spaces until its `max_tokens` are used up."""


def source_of(kind: str, text: str) -> str:
    """The source of a grammar: `text` is a JSON schema, a regular expression, a grammar (Lark or GBNF, which
    is EBNF as llama.cpp has it), or strings as a JSON list. Raises InvalidRequest."""
    return _SOURCES[kind](text)


def _json_schema(text: str) -> str:
    schema = _parsed(text)
    if not isinstance(schema, (dict, bool)):
        raise InvalidRequest("it is not a JSON schema: give an object")
    if is_endless(schema):
        raise InvalidRequest("it leads back to itself without end: no finite document can meet it")
    return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE})


def _json_object(text: str) -> str:
    return _json_schema('{"type": "object"}')


def _regex(text: str) -> str:
    # \d, \w and \s are ASCII's, as where outputs are read: a model must not write digits of other scripts.
    return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, 'dws')}/")


def _grammar(text: str) -> str:
    with foreign_errors_as(lambda error: InvalidRequest(f"it cannot be read: {error}"[:300])):
        lark = any_to_lark(text)
    endless = endless_rule(lark)
    if endless is not None:
        raise InvalidRequest(
            f"its rule {endless[:64]} leads back to itself without end: give it an alternative that ends"
        )
    return LLMatcher.grammar_from_lark(lark)


def _choice(text: str) -> str:
    # Lark's strings are JSON's.
    choices = (json.dumps(choice, ensure_ascii=False) for choice in _parsed(text))
    return LLMatcher.grammar_from_lark("start: " + " | ".join(choices))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"it is not JSON: {error}") from None


_SOURCES: Mapping[str, Callable[[str], str]] = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "grammar": _grammar,
    "choice": _choice,
}
