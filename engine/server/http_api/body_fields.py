"""How a field of a request becomes a field of the front's `Ask`: written beside the field itself.

    stop: Annotated[str | list[str] | None, To("stop_strings", by=strings_of)] = None

A field without a value, or with null, leaves the default of `Ask`.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.counts import check_count
from tokenmux.server.front.generation import Ask, Prompt

_ASK_FIELDS = frozenset(field.name for field in fields(Ask))

NOT_SERVED: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "top_logprobs": (0,),
    "allowed_token_ids": (),
    "use_beam_search": (False,),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "spaces_between_special_tokens": (True,),
    "add_special_tokens": (True,),
    "chat_template": (),
    "truncate_prompt_tokens": (),
}
"""Parameters of the dialect that would change the output and are not served, each with the values that
change nothing. Any other value is an error: half of what was asked for is worse than nothing."""


BodyItem = TypeVar("BodyItem")
ListOf = Annotated[list[BodyItem], Field(fail_fast=True)]
"""A list in a body; its first wrong item is the last one that is looked at. A body has room for a million of
them, and an error for each, for each form that the field may have, took 20 s of the event loop."""


def at_most(limit: int, what: str, field: str) -> BeforeValidator:
    """Refuses a longer list or object before its items are looked at."""

    def check(value: object) -> object:
        if isinstance(value, list | dict):
            check_count(what, value, limit, field=field)
        return value

    return BeforeValidator(check)


def few_prompts(limit: int, what: str, field: str) -> BeforeValidator:
    """As `at_most`, for what is a list of prompts, unless it holds the token ids of one."""

    def check(value: object) -> object:
        if isinstance(value, list) and value and not isinstance(value[0], int):
            check_count(what, value, limit, field=field)
        return value

    return BeforeValidator(check)


def unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True)
class To:
    """Marks a field that becomes `field` of an `Ask`, converted by `by`, which may raise InvalidRequest."""

    field: str
    by: Callable[[Any], Any] = unchanged


class Lenient(BaseModel):
    """What all bodies have in common: types are as in JSON, and unknown fields are kept to be named."""

    model_config = ConfigDict(
        strict=True, extra="allow", allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


class AskBody(Lenient):
    """A body that asks for a generation."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        """The prompts, if the body may have several; the first is in the `Ask` already."""
        return ()

    def together(self, translated: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of an `Ask` that depend on several fields of the body; `translated` are the others.
        Raises InvalidRequest."""
        return {}


@cache
def translations(body: type[AskBody]) -> tuple[tuple[str, To], ...]:
    """The fields of a body that become fields of an `Ask`, in order."""
    found = ((name, mark) for name, field in body.model_fields.items() for mark in field.metadata)
    return tuple((name, mark) for name, mark in found if isinstance(mark, To))


def ask_of_body(body: AskBody) -> Ask:
    """What a body asks for. Raises InvalidRequest if it contradicts itself, or wants what is not served."""
    check_served(body.model_extra or {})
    values: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for name, to in translations(type(body)):
        said = getattr(body, name)
        if said is None:
            continue
        value = to.by(said)
        if to.field in values and values[to.field] != value:
            raise InvalidRequest(
                f"{said_by[to.field]} and {name} mean the same and differ: send one of them", field=name
            )
        values[to.field], said_by[to.field] = value, name
    return Ask(**({**values, **body.together(values)}))


def asks_of_body(body: AskBody) -> list[Ask]:
    """What a body asks for: a request for each of its prompts. The first has the id of them all. Raises as
    `ask_of_body`."""
    ask = ask_of_body(body)
    ask = replace(ask, request_id=ask.request_id or secrets.token_hex(8))
    others = [
        replace(ask, prompt=prompt, request_id=f"{ask.request_id}-{place}")
        for place, prompt in enumerate(body.prompts)
    ][1:]
    return [ask, *others]


def check_served(extra: Mapping[str, object]) -> None:
    """Raise InvalidRequest for the first parameter that would change the output and is not served."""
    for name, value in extra.items():
        harmless = NOT_SERVED.get(name)
        if harmless is None or value is None or value in harmless:
            continue
        allowed = " or ".join([*(f"use {one!r}" for one in harmless), "leave it out"])
        raise InvalidRequest(f"{name} is not served here: {allowed}", field=name)


def ignored_names(body: Lenient) -> list[str]:
    """Names of the fields in a body that are ignored."""
    return [name for name in body.model_extra or {} if name not in NOT_SERVED]


def name_in_body(error: InvalidRequest, body: AskBody) -> str | None:
    """The place in the body that an error of the front is about.

    A rule whose error does not say which field it is about begins its message with the field's name.
    """
    field = error.named
    names = [name for name, to in translations(type(body)) if to.field == field]
    given = [name for name in names if getattr(body, name) is not None]
    if given or names:
        return (given or names)[0]
    if field in type(body).model_fields:
        return field
    sent = body.model_extra or {}
    return error.field if field in sent or field not in _ASK_FIELDS else None
