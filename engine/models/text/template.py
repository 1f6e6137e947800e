"""Chat templates without transformers: the same sandbox with the same names, so that a process that renders
starts in 0.1 s.

Registration compares its output with that of transformers (`text_files.py`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_OPEN_END = "\ue000the output goes on here\ue001 "
"""Marks the end of a message that is to be continued. Ends in a space, as a template may strip one."""


@dataclass(frozen=True, slots=True)
class TemplateInput:
    """What a template is given besides the messages. `arguments` are further names that it may know.

    With `continue_final_message` the text ends within the last message, whose content the output continues.
    """

    tools: Sequence[Mapping[str, object]] = ()
    documents: Sequence[Mapping[str, object]] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)
    continue_final_message: bool = False


def render(
    template: str,
    messages: Sequence[Mapping[str, object]],
    special_tokens: Mapping[str, str],
    given: TemplateInput | None = None,
) -> str:
    """The conversation as text, ready for the assistant's turn. Raises what the template raises."""
    given = given or TemplateInput()
    turns = [dict(message) for message in messages]
    if given.continue_final_message:
        turns[-1]["content"] = _with_open_end(turns[-1]["content"])
    text: str = _compiled(template).render(
        messages=turns,
        tools=list(given.tools) or None,
        documents=list(given.documents) or None,
        add_generation_prompt=not given.continue_final_message,
        **{**special_tokens, **given.arguments},
    )
    return _until_open_end(text) if given.continue_final_message else text


def _with_open_end(content: object) -> object:
    """The content of a message, as text or as one part, with a mark behind it."""
    if isinstance(content, str):
        return content + _OPEN_END
    assert isinstance(content, list)
    return [{**part, "text": part["text"] + _OPEN_END} for part in content]


def _until_open_end(text: str) -> str:
    """The text before the mark. If the template strips contents, so is the end of this one."""
    at = text.rfind(_OPEN_END.strip())
    if at < 0:
        raise TemplateError("it leaves out the message that is to be continued")
    return text[:at] if text.startswith(_OPEN_END, at) else text[:at].rstrip()


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; for serving it is just its content."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` without the attributes of the type."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` without underscored attributes."""

    def __init__(
        *args: Any, **named: Any
    ) -> None:  # the first parameter is self, so that `namespace(self=1)` works
        self, values = args[0], dict(*args[1:], **named)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: object) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}: it begins with an underscore")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    names: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    environment.globals.update(names)
    return environment.from_string(template)
