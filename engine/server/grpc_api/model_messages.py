"""Models and their counters as messages."""

import logging

from tokenmux.core.facts import ModelFacts
from tokenmux.messages.reports import Durations, Service
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.v1 import models_pb2

logger = logging.getLogger(__name__)


def model_message(view: ShownModel) -> models_pb2.Model:
    """A model with its latest status from the worker.

    A model with numbers that no message can hold is shown as refused, so that it does not take the status of
    all others with it.
    """
    try:
        return _whole_model(view)
    except (ValueError, TypeError, OverflowError) as error:
        logger.error("%s cannot be shown: %s; %r", view.name, error, view)
        return models_pb2.Model(
            name=view.name, refusal=view.refusal or f"its figures are impossible ({error}): remove it"
        )


def _whole_model(view: ShownModel) -> models_pb2.Model:
    status = view.status
    message = models_pb2.Model(name=view.name, pinned=view.pinned, refusal=view.refusal)
    if view.facts is not None:
        message.MergeFrom(_facts(view.facts))
    if status is not None:
        message.MergeFrom(
            models_pb2.Model(
                residency=f"RESIDENCY_{status.residency.name}",
                n_queued=status.n_queued,
                n_running=status.n_running,
                n_paged_out=status.n_paged_out,
                n_swaps=status.n_swaps,
                swap_bytes=status.swap_bytes,
                swap_s=status.swap_s,
                swap_exposed_s=status.swap_exposed_s,
                n_prompt_tokens=status.n_prompt_tokens,
                n_tokens=status.n_tokens,
                n_tokens_on_time=status.n_tokens_on_time,
                compute_s=status.compute_s,
            )
        )
    if view.use is not None:
        message.service.CopyFrom(service_message(view.use.service))
        for reason, n in view.use.swaps.items():
            setattr(message, f"n_swaps_{reason}", n)
    return message


def _facts(facts: ModelFacts) -> models_pb2.Model:
    return models_pb2.Model(
        weight_bytes=facts.n_bytes,
        kv_bytes_per_token=facts.kv.token_bytes,
        n_parameters=facts.n_parameters,
        max_context=facts.max_context,
        vocab_size=facts.vocab_size,
    )


def service_message(counters: Service) -> models_pb2.Service:
    return models_pb2.Service(
        n_requests=counters.n_requests,
        n_requests_on_time=counters.n_requests_on_time,
        n_requests_failed=counters.n_requests_failed,
        n_prompt_tokens=counters.n_prompt_tokens,
        n_tokens=counters.n_tokens,
        n_tokens_on_time=counters.n_tokens_on_time,
        artifact_attainment=counters.attained / counters.n_attained if counters.n_attained else 0.0,
        gpu_s=counters.gpu_s,
        ttft=_durations(counters.ttft),
        tpot=_durations(counters.tpot),
        gaps=_durations(counters.gaps),
    )


def _durations(histogram: Durations) -> models_pb2.Durations:
    return models_pb2.Durations(counts=histogram.counts, total_s=histogram.total_s)
