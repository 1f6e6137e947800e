"""The OpenAPI document, derived from the bodies' own classes."""

import json
from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tokenmux.server.http_api.answer_bodies import (
    ChatChunk,
    ChatCompletion,
    ModelBody,
    ModelListBody,
    TextCompletion,
)
from tokenmux.server.http_api.cancellations import CancelledBody
from tokenmux.server.http_api.embedding_bodies import EmbeddingBody, EmbeddingList
from tokenmux.server.http_api.http_errors import ERROR_FORMS, ErrorBody
from tokenmux.server.http_api.open_inference_paths import ModelMetadataBody, ModelReadyBody, ServerBody
from tokenmux.server.http_api.request_bodies import ChatBody, CompletionBody

_BODIES: tuple[type[BaseModel], ...] = (CompletionBody, ChatBody, EmbeddingBody)
_ANSWERS: tuple[type[BaseModel], ...] = (
    TextCompletion,
    ChatCompletion,
    ChatChunk,
    EmbeddingList,
    ModelBody,
    ModelListBody,
    CancelledBody,
    ServerBody,
    ModelMetadataBody,
    ModelReadyBody,
    ErrorBody,
)
_REFERENCE = "#/components/schemas/{model}"
_IGNORED = {
    "x-tokenmux-ignored": {
        "schema": {"type": "string"},
        "description": "Fields of the body that were ignored.",
    }
}
_OF_HTTP = (404, 405, 408, 413, 415, 421)


@cache
def openapi_document() -> bytes:
    """The document as JSON."""
    _, schemas = models_json_schema(
        [*((body, "validation") for body in _BODIES), *((answer, "serialization") for answer in _ANSWERS)],
        ref_template=_REFERENCE,
    )
    keyed: list[dict[str, list[str]]] = [{"key": []}]
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "tokenmux",
            "version": version("tokenmux"),
            "description": "OpenAI's dialect of HTTP, as far as it is served here.",
        },
        "security": keyed,
        "paths": {
            "/v1/completions": {
                "post": _generation("Continue a text", CompletionBody, TextCompletion, TextCompletion)
            },
            "/v1/chat/completions": {
                "post": _generation("Answer a conversation", ChatBody, ChatCompletion, ChatChunk)
            },
            "/v1/embeddings": {"post": _embedding()},
            "/v1/completions/{id}/cancel": {"post": _about("Cancel a text", "id", CancelledBody)},
            "/v1/chat/completions/{id}/cancel": {"post": _about("Cancel an answer", "id", CancelledBody)},
            "/v1/models": {"get": _question("List the models", ModelListBody)},
            "/v1/models/{name}": {"get": _about("Show a model", "name", ModelBody)},
            "/health": {"get": _open_question("Tell that the server is alive")},
            "/ready": {"get": _open_question("Tell whether requests are accepted")},
            "/openapi.json": {"get": _open_question("Show this document")},
            "/v2": {"get": _question("Tell what the server is", ServerBody)},
            "/v2/health/live": {"get": _open_question("Tell that the server is alive")},
            "/v2/health/ready": {"get": _open_question("Tell whether requests are accepted")},
            "/v2/models/{name}": {"get": _about("Tell what a model is", "name", ModelMetadataBody)},
            "/v2/models/{name}/ready": {
                "get": _about("Tell whether requests for a model are accepted", "name", ModelReadyBody)
            },
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return json.dumps(document).encode()


def _generation(
    summary: str, body: type[BaseModel], whole: type[BaseModel], chunk: type[BaseModel]
) -> dict[str, Any]:
    description = (
        f"With `stream`, server-sent events: chunks ({chunk.__name__}), and then `data: [DONE]`. "
        "Comments tell what the request waits for."
    )
    ok = {
        "description": description,
        "headers": {"x-request-id": {"schema": {"type": "string"}}, **_IGNORED},
        "content": {**_json(whole), "text/event-stream": {}},
    }
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _json(body)},
        "responses": {"200": ok, **_errors()},
    }


def _embedding() -> dict[str, Any]:
    ok = {"description": "A vector for each input", "headers": _IGNORED, "content": _json(EmbeddingList)}
    return {
        "summary": "Make embeddings",
        "requestBody": {"required": True, "content": _json(EmbeddingBody)},
        "responses": {"200": ok, **_errors()},
    }


def _question(summary: str, answer: type[BaseModel]) -> dict[str, Any]:
    ok = {"description": summary, "content": _json(answer)}
    return {"summary": summary, "responses": {"200": ok, **_errors()}}


def _about(summary: str, parameter: str, answer: type[BaseModel]) -> dict[str, Any]:
    """A question about what the path names."""
    place = {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
    return {**_question(summary, answer), "parameters": [place]}


def _open_question(summary: str) -> dict[str, Any]:
    ok = {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"summary": summary, "security": [], "responses": {"200": ok, **_errors()}}


def _errors() -> dict[str, Any]:
    statuses = sorted({*(int(form.status) for form in ERROR_FORMS.values()), *_OF_HTTP})
    return {str(status): {"description": "An error", "content": _json(ErrorBody)} for status in statuses}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}}
