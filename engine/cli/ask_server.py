"""What a running server knows that a plan can start from: its models and its recorded traffic."""

from dataclasses import dataclass

from tokenmux.client import Client, ModelSizes, RecordedRequest
from tokenmux.core.errors import ConfigError, NotFound
from tokenmux.core.facts import BLOCK_TOKENS, Image, ImageId, KvShape, ModelFacts, ModelId
from tokenmux.workload.prompt_hashes import HASH_TOKENS
from tokenmux.workload.trace import Trace, TraceRequest


@dataclass(frozen=True, slots=True)
class ServerKnowledge:
    """What a running server knows: its models, and the requests that it has recorded."""

    models: dict[ModelId, ModelFacts]
    trace: Trace


def ask_server(client: Client, last_s: float = 0.0, with_traffic: bool = True) -> ServerKnowledge:
    """The server's models and, with `with_traffic`, the requests of the last `last_s` seconds (0: all it
    remembers).

    Raises CallFailed, ConfigError if the server has no models, NotFound if it has recorded no request.
    """
    models = {ModelId(sizes.name): facts_of_sizes(sizes) for sizes in client.planning.catalogue()}
    if not models:
        raise ConfigError("this server has no models: register one first")
    if not with_traffic:
        return ServerKnowledge(models, [])
    lines = [trace_line(request) for request in client.planning.recorded_traffic(last_s)]
    if not lines:
        raise NotFound(
            "this server has recorded no request yet: send it some, or plan with the names of models "
            "and --trace or --rate"
        )
    # A model may have been removed since its requests were recorded.
    return ServerKnowledge(models, [line for line in lines if line.model in models])


def facts_of_sizes(sizes: ModelSizes) -> ModelFacts:
    return ModelFacts(
        ModelId(sizes.name),
        (Image(ImageId(f"{sizes.name}/weights"), sizes.weight_bytes),),
        KvShape(sizes.n_layers, sizes.n_kv_heads, sizes.head_dim, sizes.dtype_bytes, BLOCK_TOKENS),
        sizes.max_context,
        sizes.n_parameters,
        sizes.vocab_size,
    )


def trace_line(request: RecordedRequest) -> TraceRequest:
    return TraceRequest(
        request.arrival_s,
        request.model,
        request.input_tokens,
        request.output_tokens,
        request.tenant,
        request.ttft_s,
        request.tpot_s,
        request.weight,
        request.hash_ids,
        request.hash_tokens or HASH_TOKENS,
    )
