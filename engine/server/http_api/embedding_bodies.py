"""The bodies of `/v1/embeddings`: what is asked, and the answer."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tokenmux.server.front.embeddings import MAX_INPUTS
from tokenmux.server.http_api.body_fields import Lenient, ListOf, few_prompts


class EmbeddingBody(Lenient):
    """The body of `POST /v1/embeddings`."""

    model: str
    input: Annotated[
        Annotated[str, Field(title="one text")]
        | Annotated[ListOf[int], Field(title="the token ids of one input")]
        | Annotated[ListOf[str], Field(title="texts")]
        | Annotated[ListOf[ListOf[int]], Field(title="the token ids of each input")],
        few_prompts(MAX_INPUTS, "inputs", "input"),
    ]
    encoding_format: Literal["float", "base64"] | None = None
    """base64: the numbers as float32, little-endian. Default: float."""
    dimensions: int | None = None
    user: str | None = None
    """The tenant, where the server has no keys."""
    weight: float | None = None
    timeout_s: float | None = None
    """How long to wait for all inputs, in seconds; then they end."""


class EmbeddingItem(BaseModel):
    """The embedding of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """How many tokens the inputs have."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The answer of `/v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
