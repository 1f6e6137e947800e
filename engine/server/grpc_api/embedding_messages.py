"""Calls for embeddings and their answers, between messages and the front's values."""

from collections.abc import Sequence

from tokenmux.core.errors import InvalidRequest
from tokenmux.core.pooling import Embedding, Pooling
from tokenmux.server.front.counts import check_count
from tokenmux.server.front.embeddings import MAX_INPUTS, EmbedAsk, Embedded
from tokenmux.server.front.generation import Text, TokenIds
from tokenmux.server.grpc_api.ask_messages import timeout_of
from tokenmux.v1 import inference_pb2


def embed_ask_of(request: inference_pb2.EmbedRequest, remaining_s: float | None) -> EmbedAsk:
    """What a request asks for, whose call has a deadline in `remaining_s` if it has one. Raises
    InvalidRequest for an input without content, or more inputs than are worth copying."""
    check_count("inputs", request.inputs, MAX_INPUTS, field="inputs")
    return EmbedAsk(
        request.model,
        tuple(_input(one, place) for place, one in enumerate(request.inputs)),
        request.dimensions if request.HasField("dimensions") else None,
        request.tenant,
        request.weight if request.HasField("weight") else 1.0,
        timeout_of(remaining_s),
    )


def embed_response(model: str, embedded: Sequence[Embedded]) -> inference_pb2.EmbedResponse:
    return inference_pb2.EmbedResponse(
        model=model,
        embeddings=(
            inference_pb2.Embedding(values=one.values, n_prompt_tokens=one.n_prompt) for one in embedded
        ),
        usage=inference_pb2.Usage(n_prompt_tokens=sum(one.n_prompt for one in embedded)),
    )


def embedding_facts_message(embedding: Embedding) -> inference_pb2.EmbeddingFacts | None:
    """How a model makes embeddings; None if it makes none."""
    if not isinstance(embedding, Pooling):
        return None
    return inference_pb2.EmbeddingFacts(
        dimensions=embedding.n_dimensions,
        pooling=embedding.kind,
        normalized=embedding.normalised,
        shortens=embedding.shortens,
    )


def _input(one: inference_pb2.EmbedInput, place: int) -> Text | TokenIds:
    match one.WhichOneof("input"):
        case "text":
            return Text(one.text)
        case "token_ids":
            return TokenIds(one.token_ids.ids)
        case _:
            said = f"input {place} is empty: give text or token_ids"
            raise InvalidRequest(said, field=f"inputs[{place}]")
