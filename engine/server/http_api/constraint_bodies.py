"""What an output must obey, as bodies say it: OpenAI's `response_format` and vLLM's `structured_outputs`."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from tokenmux.core.errors import InvalidRequest
from tokenmux.server.front.constraint_rules import choice_of
from tokenmux.server.front.generation import Constraint
from tokenmux.server.http_api.body_fields import Lenient, ListOf


class SchemaBody(Lenient):
    """A JSON schema with a name, which is not used. The output always meets it, `strict` or not."""

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Lenient):
    """The format of an answer; for `json_schema` it comes with one."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None


class StructuredOutputs(Lenient):
    """What the output must obey: one of these."""

    model_config = ConfigDict(protected_namespaces=())

    json_document: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: ListOf[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Any = None


def constraint_of_format(form: ResponseFormat) -> Constraint | None:
    match form.type:
        case "text":
            return None
        case "json_object":
            return Constraint("json_object", "{}")
        case "json_schema":
            if form.json_schema is None or form.json_schema.json_schema is None:
                said = "response_format.json_schema.schema is missing: send the JSON schema"
                raise InvalidRequest(said, field="response_format")
            return Constraint("json_schema", json.dumps(form.json_schema.json_schema, ensure_ascii=False))


def constraint_of_outputs(outputs: StructuredOutputs) -> Constraint:
    if outputs.structural_tag is not None:
        said = "structured_outputs.structural_tag is not served here: use json, regex, choice or grammar"
        raise InvalidRequest(said, field="structured_outputs")
    schema = outputs.json_document
    given: Mapping[str, Constraint | None] = {
        "json": None if schema is None else Constraint("json_schema", _as_text(schema)),
        "regex": None if outputs.regex is None else Constraint("regex", outputs.regex),
        "choice": None if outputs.choice is None else choice_of(outputs.choice),
        "grammar": None if outputs.grammar is None else Constraint("grammar", outputs.grammar),
        "json_object": Constraint("json_object", "{}") if outputs.json_object else None,
    }
    found = [(name, constraint) for name, constraint in given.items() if constraint is not None]
    if len(found) != 1:
        names = " and ".join(name for name, _ in found) or "nothing"
        raise InvalidRequest(
            f"structured_outputs has {names}: give one of json, regex, choice, grammar and json_object",
            field="structured_outputs",
        )
    return found[0][1]


def _as_text(schema: Mapping[str, Any] | str) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
