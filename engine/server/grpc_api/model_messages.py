"""Models and their counters as messages."""

import logging
from collections.abc import Sequence
from operator import attrgetter

from tokenmux.core.facts import ModelFacts
from tokenmux.scheduler.metrics.counter_table import Row
from tokenmux.scheduler.metrics.counters import MODEL_TABLE, SERVICE_TABLE
from tokenmux.scheduler.metrics.histogram import Durations
from tokenmux.server.front.list_pages import page_of
from tokenmux.server.front.shown_models import ShownModel
from tokenmux.v1 import models_pb2, pool_pb2

logger = logging.getLogger(__name__)


def model_message(view: ShownModel) -> models_pb2.Model:
    """A model with its latest status from the node.

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


def basic_model_message(view: ShownModel) -> models_pb2.Model:
    """What a list needs of a model."""
    whole = model_message(view)
    return models_pb2.Model(
        name=whole.name,
        residency=whole.residency,
        pinned=whole.pinned,
        refusal=whole.refusal,
        max_context=whole.max_context,
        instances=whole.instances,
    )


def requested_page(
    request: models_pb2.ListModelsRequest | pool_pb2.GetStatusRequest, models: Sequence[ShownModel]
) -> tuple[Sequence[ShownModel], str]:
    """The models that a request asks for, and the token of the next page. Raises InvalidRequest."""
    return page_of(
        models,
        attrgetter("name"),
        size=request.page_size,
        token=request.page_token,
        filter=request.filter,
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
                n_tokens_overdue=status.n_tokens_overdue,
                instances=status.resident_on,
                **MODEL_TABLE.named(status.counts),
            )
        )
    if view.service is not None:
        message.service.CopyFrom(service_message(view.service))
    return message


def _facts(facts: ModelFacts) -> models_pb2.Model:
    return models_pb2.Model(
        weight_bytes=facts.n_bytes,
        kv_bytes_per_token=facts.kv.token_bytes,
        n_parameters=facts.n_parameters,
        max_context=facts.max_context,
        vocab_size=facts.vocab_size,
    )


def service_message(row: Row) -> models_pb2.ServiceTotals:
    values = SERVICE_TABLE.named(row)
    for name, value in values.items():
        if isinstance(value, Durations):
            values[name] = models_pb2.Durations(counts=value.counts, total_s=value.total_s)
    return models_pb2.ServiceTotals(**values)
