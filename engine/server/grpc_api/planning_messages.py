"""Sizes of models and recorded traffic as messages."""

import logging
from collections.abc import Iterable, Iterator

from tokenmux.core.facts import ModelFacts
from tokenmux.v1 import planning_pb2
from tokenmux.workload.trace import TraceRequest

logger = logging.getLogger(__name__)

MAX_BATCH = 1000
MAX_BATCH_HASHES = 100_000


def size_messages(models: Iterable[ModelFacts]) -> list[planning_pb2.ModelSizes]:
    """Sizes of all models whose sizes a message can hold."""
    messages = []
    for facts in models:
        try:
            messages.append(_sizes(facts))
        except (ValueError, TypeError, OverflowError) as error:
            logger.error("%s is left out of the catalogue's sizes: %s", facts.id, error)
    return messages


def _sizes(facts: ModelFacts) -> planning_pb2.ModelSizes:
    return planning_pb2.ModelSizes(
        name=facts.id,
        weight_bytes=facts.n_bytes,
        n_parameters=facts.n_parameters,
        max_context=facts.max_context,
        vocab_size=facts.vocab_size,
        n_layers=facts.kv.n_layers,
        n_kv_heads=facts.kv.n_kv_heads,
        head_dim=facts.kv.head_dim,
        dtype_bytes=facts.kv.dtype_bytes,
    )


def batches(lines: Iterable[TraceRequest]) -> Iterator[list[TraceRequest]]:
    """The lines in lists that are small enough for a message: at most 60 kB, and 800 kB of hashes."""
    batch: list[TraceRequest] = []
    n_hashes = 0
    for line in lines:
        if batch and (len(batch) >= MAX_BATCH or n_hashes + len(line.hash_ids) > MAX_BATCH_HASHES):
            yield batch
            batch, n_hashes = [], 0
        batch.append(line)
        n_hashes += len(line.hash_ids)
    if batch:
        yield batch


def recorded_message(line: TraceRequest) -> planning_pb2.RecordedRequest:
    return planning_pb2.RecordedRequest(
        arrival_s=line.arrival_s,
        model=line.model,
        input_tokens=line.input_tokens,
        output_tokens=line.output_tokens,
        tenant=line.tenant,
        ttft_s=line.ttft_s,
        tpot_s=line.tpot_s,
        weight=line.weight,
        hash_ids=line.hash_ids,
        hash_tokens=line.hash_tokens if line.hash_ids else 0,
    )
