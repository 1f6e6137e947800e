"""What cannot be kept is not begun: a model with very long prompts waits while others' KV fills the device.

A prompt of 100,000 tokens leaves 13 GB of KV. Under overload, deadline order begins one after the other,
until they push each other out of the device, then out of host memory, and seconds of work are thrown away.
"""

from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView, RequestView

LONG = 1 / 24
"""A prompt is long if its KV takes this share of the arena: more than the headroom beside incoming weights.
Nothing is asked of shorter ones."""

PATIENCE_TTFTS = 20.0
"""A model that is late by this is begun whatever else there is, since waiting is bounded. With 5 or 10 it
comes too early to help: an overload that lasts makes everything late by more."""


def may_begin(view: InstanceView, model: ModelView) -> bool:
    """True if the model may be loaded: it has begun, or the KV of its most urgent prompt will find room on
    the device beside the two largest live models and the KV of all that has begun."""
    if model.facts.max_context * model.facts.kv.token_bytes <= LONG * view.device.arena_bytes:
        return True
    requests = [r for file in (model.waiting, model.decoding, model.away) for r in file.values()]
    need = _kv_bytes(view, min(requests, key=lambda r: r.due_s))
    if need <= LONG * view.device.arena_bytes:
        return True
    if view.now_s - model.deadline_s > PATIENCE_TTFTS * view.service.ttft_s:
        return True
    if any(request.n_computed for request in requests):
        return True
    begun = [r for r in view.requests.values() if r.n_computed and not r.is_paused]
    weights = sorted(other.facts.n_bytes for other in view.live_models.values())[-2:]
    kept = sum(_kv_bytes(view, request) for request in begun)
    return not begun or kept + need <= view.device.arena_bytes - sum(weights)


def _kv_bytes(view: InstanceView, request: RequestView) -> int:
    return request.n_tokens * view.models[request.request.model].facts.kv.token_bytes
