"""Calls of tools are found in every known form, however the output is cut into pieces."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmux.models.text.followed_call import MAX_HEAD, CallPiece
from tokenmux.models.text.tool_call_parser import ToolCallParser
from tokenmux.models.text.tool_formats import (
    REQUIRED,
    TOOL_FORMATS,
    ToolCall,
    ToolFormat,
    named_format,
    schemas_of,
    tool_format_of,
)

FORMS = {form.name: form for form in TOOL_FORMATS}
TOOLS = schemas_of(
    [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in (
            ("weather", {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}),
            ("now", None),
            ("odd", {"properties": 3}),
        )
    ]
)
BERN = ToolCall("weather", '{"city": "Bern", "days": 2}')
NOW = ToolCall("now", "{}")
JSON_BERN = '{"name": "weather", "arguments": {"city": "Bern", "days": 2}}'

OUTPUTS: list[tuple[str, str, str, list[ToolCall]]] = [
    ("hermes", f"<tool_call>\n{JSON_BERN}\n</tool_call>", "", [BERN]),
    (
        "hermes",
        f'Let me see.\n\n<tool_call>{JSON_BERN}</tool_call>\n<tool_call>{{"name": "now"}}</tool_call> \n',
        "Let me see.",
        [BERN, NOW],
    ),
    ("hermes", f"a < b\n<tool_call>{JSON_BERN}", "a < b", [BERN]),
    ("hermes", f"<tool_call>{JSON_BERN}</tool_call> Done. ", "Done. ", [BERN]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>',
        "",
        [ToolCall("weather", "{}")],
    ),
    ("hermes", "  plain <tool", "  plain <tool", []),
    ("hermes", "", "", []),
    (
        "qwen-coder",
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n"
            "</parameter>\n</function>\n</tool_call>"
        ),
        "",
        [BERN],
    ),
    ("qwen-coder", "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [NOW]),
    (
        "glm",
        (
            "Well.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
        ),
        "Well.",
        [BERN],
    ),
    ("mistral", f'[TOOL_CALLS] [{JSON_BERN}, {{"name": "now", "arguments": {{}}}}]', "", [BERN, NOW]),
    (
        "mistral",
        'So:[TOOL_CALLS]weather[ARGS]{"city": "Bern", "days": 2}[TOOL_CALLS]now{}',
        "So:",
        [BERN, NOW],
    ),
    (
        "deepseek",
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
            '{"city": "Bern", "days": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
        ),
        "",
        [BERN, NOW],
    ),
    ("bars", f"<|tool_call|>[{JSON_BERN}]<|/tool_call|>", "", [BERN]),
    ("bars", f"<|tool_call|> [{JSON_BERN}]", "", [BERN]),
    ("llama", ' {"name": "weather", "parameters": {"city": "Bern", "days": 2}}', "", [BERN]),
    ("llama", f'{JSON_BERN}; {{"name": "now", "parameters": {{}}}}', "", [BERN, NOW]),
    ("llama", "It is {12}.", "It is {12}.", []),
]

TEXTS = [
    '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": "{"}</tool_call>',
    "<tool_call>" + "[" * 100_000 + "</tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>3</tool_call>",
    "[TOOL_CALLS]",
    "[TOOL_CALLS] []",
    "[TOOL_CALLS]weather[ARGS]",
    '{"answer": 42}',
    '{"name": "weather"',
    "<｜tool▁calls▁begin｜><｜tool▁calls▁end｜>",
]
"""What looks like a call, and is none."""


def read(form: ToolFormat, pieces: Iterator[str] | list[str]) -> tuple[str, list[ToolCall]]:
    parser = ToolCallParser(form, TOOLS)
    found = [*(parser.push(piece) for piece in pieces), parser.finish()]
    return "".join(text for text, _ in found), whole([piece for _, calls in found for piece in calls])


def whole(pieces: Sequence[CallPiece]) -> list[ToolCall]:
    """The calls of which these are the pieces."""
    calls: list[ToolCall] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append(ToolCall(piece.name, ""))
        calls[-1] = ToolCall(calls[-1].name, calls[-1].arguments + piece.arguments)
    return calls


@pytest.mark.parametrize(("name", "output", "text", "calls"), OUTPUTS)
@given(data=st.data())
def test_calls_are_found_in_any_pieces(
    name: str, output: str, text: str, calls: list[ToolCall], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(output)), max_size=12)))
    bounds = [0, *cuts, len(output)]
    pieces = [output[start:end] for start, end in pairwise(bounds)]
    assert read(FORMS[name], pieces) == (text, calls)


@pytest.mark.parametrize(("name", "output", "text", "calls"), OUTPUTS)
def test_calls_are_found_letter_by_letter(name: str, output: str, text: str, calls: list[ToolCall]) -> None:
    assert read(FORMS[name], list(output)) == (text, calls)


@pytest.mark.parametrize("output", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("form", TOOL_FORMATS, ids=FORMS)
def test_what_is_no_call_stays_text(output: str, form: ToolFormat) -> None:
    assert read(form, [output]) == (output, [])


@given(st.text(alphabet='<tool_call>{"}/[]:ame ', max_size=40), st.sampled_from(TOOL_FORMATS))
def test_no_text_is_lost(output: str, form: ToolFormat) -> None:
    text, calls = read(form, list(output))
    assert (text, calls) == (output, [])


FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|tool_call|>",
        "<|/tool_call|>",
    ),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁calls▁end｜>", "function", "```json\n", "```", "\n", " ", "<function=now>", "<arg_key>"),
    *(JSON_BERN, '{"name": "now"}', '{"arguments": {}, "name": "now"}', '"id": "x"', '{"name": "other"}'),
    *("weather", "now", "{", "}", "[", "]", ",", ";", '"', '"name": ', '"arguments": ', ": ", "\\", "1"),
    *('{"name": "weather", "arguments": ', '{"city": "B}<\\"n', " " * MAX_HEAD, "ç"),
]


@given(
    st.lists(st.sampled_from(FRAGMENTS), max_size=16).map("".join),
    st.sampled_from((*TOOL_FORMATS, REQUIRED, named_format("weather"))),
    st.data(),
)
def test_any_output_says_the_same_in_any_pieces(output: str, form: ToolFormat, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(output)), max_size=20)))
    pieces = [output[start:end] for start, end in pairwise([0, *cuts, len(output)])]
    expected = read(form, [output])
    assert read(form, pieces) == expected
    assert read(form, list(output)) == expected


FOLLOWED = [
    ("hermes", f"<tool_call>{JSON_BERN}</tool_call>"),
    ("bars", f"<|tool_call|>[{JSON_BERN}]"),
    ("llama", JSON_BERN.replace("arguments", "parameters")),
    ("mistral", f"[TOOL_CALLS] [{JSON_BERN}]"),
    ("mistral", f"[TOOL_CALLS]weather[ARGS]{BERN.arguments}"),
    ("deepseek", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{BERN.arguments}"),
    ("required", f"[{JSON_BERN}]"),
    ("named", BERN.arguments),
]


@pytest.mark.parametrize(("name", "output"), FOLLOWED)
def test_arguments_are_told_while_they_are_written(name: str, output: str) -> None:
    form = (FORMS | {"required": REQUIRED, "named": named_format("weather")})[name]
    parser = ToolCallParser(form, TOOLS)
    start = output.index(BERN.arguments)
    pieces: list[CallPiece] = []
    for at, char in enumerate(output):
        pieces += parser.push(char)[1]
        written = output[start : at + 1][: len(BERN.arguments)]
        assert whole(pieces) == ([ToolCall("weather", written)] if written else [])
    assert parser.finish() == ("", [])


def test_a_call_that_breaks_off_has_the_arguments_that_were_written() -> None:
    cut = '{"name": "weather", "arguments": {"city": "Be'
    assert read(FORMS["hermes"], [f"<tool_call>{cut}"]) == ("", [ToolCall("weather", '{"city": "Be')])
    assert read(FORMS["hermes"], [f"<tool_call>{cut}</tool_call> Well."]) == (
        "Well.",
        [ToolCall("weather", '{"city": "Be')],
    )
    assert read(named_format("weather"), list('{"city": ')) == ("", [ToolCall("weather", '{"city": ')])
    assert read(REQUIRED, list(f"[{JSON_BERN}, ")) == ("", [BERN])


def test_what_follows_a_call_and_is_none_is_text() -> None:
    assert read(FORMS["llama"], [f"{JSON_BERN} and more"]) == ("and more", [BERN])
    other = '{"name": "other", "arguments": {}}'
    assert read(FORMS["bars"], [f"<|tool_call|>[{JSON_BERN}, {other}]"]) == (f"{other}]", [BERN])
    late = '{"arguments": {}, "name": "now"}'
    assert read(FORMS["bars"], [f"<|tool_call|>[{JSON_BERN}, {late}]"]) == ("", [BERN, NOW])
    with_id = '{"id": "a\\"1", "name": "weather", "arguments": {}, "type": "function"}'
    assert read(FORMS["bars"], [f"<|tool_call|>[{with_id}, {with_id}]"]) == (
        "",
        [ToolCall("weather", "{}")] * 2,
    )


def test_forced_output_is_read_as_a_whole() -> None:
    assert read(named_format("weather"), list('{"city": "Bern", "days": 2}')) == ("", [BERN])
    assert read(REQUIRED, list(f'[{JSON_BERN}, {{"name": "now"}}]')) == ("", [BERN, NOW])


def test_text_is_not_held_back_for_long() -> None:
    parser = ToolCallParser(FORMS["hermes"], TOOLS)
    assert parser.push("a b <to") == ("a b", [])
    assert parser.push("y> ") == (" <toy>", [])
    assert parser.finish() == (" ", [])


def test_values_that_are_written_as_text_have_the_type_of_their_schema() -> None:
    written = "<tool_call><function=weather><parameter=city>12</parameter><parameter=days>soon</parameter>"
    (call,) = read(FORMS["qwen-coder"], [written])[1]
    assert json.loads(call.arguments) == {"city": "12", "days": "soon"}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('{{ "<tool_call>\\n{\\"name\\": <function-name>" }}', "hermes"),
        ("<tool_call>\n<function=example>", "qwen-coder"),
        ("<tool_call>{name}<arg_key>", "glm"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("<｜tool▁calls▁begin｜>", "deepseek"),
        ("<|tool_call|>", "bars"),
        ('Respond in the format {"name": function name, "parameters": dictionary of', "llama"),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_the_form_is_found_in_the_template(template: str | None, name: str | None) -> None:
    form = tool_format_of(template)
    assert (form.name if form else None) == name
