"""Masks: what ends by itself is valid, whatever is drawn; a pure function of the tokens; hostile grammars."""

import json
import re
import time
from random import Random

import jsonschema
import numpy as np
import pytest

from tests.models.grammar.random_schemas import random_schema
from tokenmux.core.errors import InvalidRequest
from tokenmux.core.grammar import Grammar
from tokenmux.messages.mask_messages import MaskQuestion
from tokenmux.models.grammar.endless_rules import endless_rule
from tokenmux.models.grammar.matchers import Matchers, compile_grammar
from tokenmux.models.grammar.translation import source_of
from tokenmux.models.grammar.vocabulary import Vocabulary

BYTES = Vocabulary.of_bytes()
(END,) = BYTES.end_token_ids
MOST_TOKENS = 400


def matchers_of(kind: str, text: str) -> tuple[Matchers, str]:
    grammar = Grammar.of(source_of(kind, text))
    matchers = Matchers(BYTES)
    matchers.add(grammar)
    return matchers, grammar.id


def allowed_after(matchers: Matchers, grammar_id: str, output: tuple[int, ...]) -> list[int]:
    mask = matchers.mask(MaskQuestion(grammar_id, output))
    assert not mask.error, mask.error
    bits = np.unpackbits(np.frombuffer(mask.bits, np.uint8), count=BYTES.size, bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def drawn(kind: str, text: str, rng: Random) -> str | None:
    """An output drawn by chance, which prefers to end; None if it did not end in time."""
    matchers, grammar_id = matchers_of(kind, text)
    output: tuple[int, ...] = ()
    for _ in range(MOST_TOKENS):
        allowed = allowed_after(matchers, grammar_id, output)
        if END in allowed and (allowed == [END] or rng.random() < 0.5):
            return bytes(output).decode()
        output += (rng.choice([token for token in allowed if token != END]),)
    return None


def check_schemas(n: int, seed: int) -> None:
    """Draw a document for each of `n` schemas. Those that end by themselves are valid, and most do."""
    rng = Random(seed)
    n_ended = 0
    for _ in range(n):
        schema = random_schema(rng)
        text = drawn("json_schema", json.dumps(schema), rng)
        if text is not None:
            n_ended += 1
            jsonschema.validate(json.loads(text), schema)
    assert n_ended > 0.8 * n


def test_documents_that_end_by_themselves_are_valid() -> None:
    check_schemas(200, seed=1)


@pytest.mark.nightly
def test_a_thousand_documents_are_valid() -> None:
    check_schemas(1000, seed=2)


def test_texts_obey_expressions_grammars_and_choices() -> None:
    rng = Random(3)
    assert re.fullmatch(r"[0-9]{3}-[0-9]{4}", drawn("regex", r"\d{3}-\d{4}", rng) or "")
    assert re.fullmatch(r"a/b\n?", drawn("regex", "a/b\n?", rng) or "")
    sums = 'root ::= term ("+" term)+\nterm ::= [0-9]\n'
    assert re.fullmatch(r"\d(\+\d)+", drawn("grammar", sums, rng) or "")
    assert re.fullmatch(r"\d(\+\d)+", drawn("grammar", 'start: T ("+" T)+\nT: /[0-9]/', rng) or "")
    choices = ["ja", "nein", 'sagt "ç"\n', ""]
    assert {drawn("choice", json.dumps(choices), rng) for _ in range(40)} == {*choices}
    assert isinstance(json.loads(drawn("json_object", "{}", Random(5)) or ""), dict)


def test_a_mask_depends_on_the_tokens_alone() -> None:
    schema = json.dumps({"type": "array", "items": {"enum": ["one", "two"]}, "minItems": 2, "maxItems": 3})
    kept, grammar_id = matchers_of("json_schema", schema)
    output = b'["one","two"'
    for n in range(len(output) + 1):
        fresh, _ = matchers_of("json_schema", schema)
        question = MaskQuestion(grammar_id, tuple(output[:n]))
        assert kept.mask(question) == fresh.mask(question)
    # The same beginning again, and another one in between: a state that went on is not taken for it.
    kept.mask(MaskQuestion(grammar_id, tuple(b'["two"')))
    for n in (0, 5, 3, 12):
        fresh, _ = matchers_of("json_schema", schema)
        question = MaskQuestion(grammar_id, tuple(output[:n]))
        assert kept.mask(question) == fresh.mask(question)


def test_end_tokens_are_allowed_exactly_where_the_grammar_allows_an_end() -> None:
    matchers, grammar_id = matchers_of("choice", '["ab", "a"]')
    assert allowed_after(matchers, grammar_id, ()) == [ord("a")]
    assert allowed_after(matchers, grammar_id, tuple(b"a")) == [ord("b"), END]
    assert allowed_after(matchers, grammar_id, tuple(b"ab")) == [END]


def test_an_output_that_cannot_be_has_no_mask() -> None:
    matchers, grammar_id = matchers_of("choice", '["ab"]')
    assert matchers.mask(MaskQuestion(grammar_id, tuple(b"x"))).error
    assert matchers.mask(MaskQuestion("unknown", ())).error


HOSTILE = {
    "not JSON": ("json_schema", "{"),
    "no schema": ("json_schema", "[1]"),
    "no such type": ("json_schema", '{"type": "strng"}'),  # codespell:ignore strng
    "itself": ("json_schema", '{"$ref": "#"}'),
    "endless object": (
        "json_schema",
        '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}',
    ),
    "contradiction": ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'),
    "keyword that cannot be held to": ("json_schema", '{"type": "array", "uniqueItems": true}'),
    "foreign reference": ("json_schema", '{"$ref": "http://example.com/schema.json"}'),
    "deep": ("json_schema", '{"type":"array","items":' * 20_000 + "true" + "}" * 20_000),
    "many alternatives": (
        "json_schema",
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(6)]} for i in range(14)
                ]
            }
        ),
    ),
    "open bracket": ("regex", "(a"),
    "look-around": ("regex", "(?=a)b"),
    "deep brackets": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "rule without end": ("grammar", "start: start"),
    "two rules without end": ("grammar", 'start: a\na: b "x"\nb: a "y"'),
    "only itself": ("grammar", 'start: "a" start'),
    "only itself, in GBNF": ("grammar", 'root ::= "(" root ")"'),
    "left recursion that never ends": ("grammar", 'root ::= root "a"'),
    "a part of itself": ("grammar", 'start: "x" a? | "y"\na: "b" a'),
    "each other": ("grammar", 'root ::= a | b\na ::= "x" b\nb ::= "y" (a | b)+'),
    "terminal of itself": ("grammar", 'start: A\nA: "a" A'),
    "unknown rule": ("grammar", "root ::= foo"),
    "doubling terminals": (
        "grammar",
        "\n".join(["start: T0", *(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)), 'T40: "a"']),
    ),
}


@pytest.mark.parametrize(("kind", "text"), HOSTILE.values(), ids=HOSTILE)
def test_what_cannot_be_obeyed_is_refused_with_a_reason(kind: str, text: str) -> None:
    began_s = time.process_time()
    with pytest.raises(InvalidRequest) as refused:
        compile_grammar(BYTES, source_of(kind, text))
    assert 10 < len(str(refused.value)) < 400
    assert time.process_time() - began_s < 5


def test_recursion_that_ends_is_followed() -> None:
    rng = Random(4)
    for grammar, expression in (
        ('start: start "+" T | T\nT: /[0-9]/', r"\d(\+\d)*"),
        ('root ::= root "a" | "b"', r"ba*"),
        ('root ::= "(" root ")" | "x"', r"\(*x\)*"),
        ('start: "x" a? | ("y" a)~0..2\na: "b" a // or\n | "c" -> it\nunused: unused', "xb*c|x|(yb*c)*"),
        ('root ::= a [0-9]\na ::= ("-" a)?\n', r"-*\d"),
    ):
        text = drawn("grammar", grammar, rng)
        assert text is not None
        assert re.fullmatch(expression, text), (grammar, text)


def test_many_rules_in_any_order_are_looked_at_within_a_limit() -> None:
    chain = [f'r{i}: "a" r{i + 1}' for i in range(5000)]
    began_s = time.process_time()
    for rules in (chain, chain[::-1]):
        assert not endless_rule("\n".join(["start: r0", *rules, 'r5000: "b"']))
        assert endless_rule("\n".join(["start: r0", *rules, 'r5000: "b" r0']))
    shuffled = Random(1).sample(chain, len(chain))
    assert not endless_rule("\n".join(["start: r0", *shuffled, 'r5000: "b"']))
    assert time.process_time() - began_s < 60


@pytest.mark.parametrize("text", ["((a{1,1000}){1,1000}){1,1000}", "(a|b)*a(a|b){40}", "[a-z]{1000000}"])
def test_an_expression_that_explodes_is_followed_or_given_up_within_a_limit(text: str) -> None:
    began_s = time.process_time()
    matchers, grammar_id = matchers_of("regex", text)
    assert allowed_after(matchers, grammar_id, ())
    mask = matchers.mask(MaskQuestion(grammar_id, tuple(b"a" * 50)))
    assert bool(mask.bits) != bool(mask.error)
    assert time.process_time() - began_s < 5
