"""What cannot be kept is not begun: very long prompts wait while the KV of others fills the device.

A prompt of 100,000 tokens leaves 13 GB of KV. Under overload, deadline order begins one after the other,
until they push each other out of the device, then out of host memory, and seconds of work are thrown away.
A model waits with its first prompt before it is loaded; a resident one has prompts wait as long as it has
others to go on with.
"""

from tokenmux.scheduler.policy.instance_policy import InstanceView, ModelView, RequestView

LONG = 1 / 24
"""A prompt is long if its KV takes this share of the arena: more than the headroom beside incoming weights.
Nothing is asked of shorter ones."""

PATIENCE_TTFTS = 20.0
"""A model that is late by this is begun whatever else there is, since waiting is bounded. With 5 or 10 it
comes too early to help: an overload that lasts makes everything late by more."""

DEFERRED_SHARE = 0.5
"""Deferred prompts fill this share of the room for KV, so that what can still be on time finds room. With all
of it, overloads are worked off 10% sooner, and where chat shares the models 9 points are lost."""


def may_begin(view: InstanceView, model: ModelView) -> bool:
    """True if the model may be loaded: it has begun, or its most urgent prompt may begin."""
    if model.facts.max_context * model.facts.kv.token_bytes <= LONG * view.device.arena_bytes:
        return True
    requests = [r for file in (model.waiting, model.decoding, model.away) for r in file.values()]
    first = min(requests, key=lambda r: r.due_s)
    if not _is_large(view, first) or any(request.n_computed for request in requests):
        return True
    if view.now_s - model.due_s > PATIENCE_TTFTS * view.service.ttft_s:
        return True
    return _finds_room(view, first)


def beginnable(view: InstanceView, model: ModelView) -> list[RequestView]:
    """The waiting prompts of a resident model but those long ones that may not begin. While none of the model
    has begun, they all may: a resident model must not stand still."""
    prompts = list(model.waiting.values())
    if not any(p.is_long for p in prompts) or not (model.decoding or any(p.n_computed for p in prompts)):
        return prompts
    return [
        p for p in prompts if p.n_computed or not (p.is_long and _is_large(view, p)) or _finds_room(view, p)
    ]


def _finds_room(view: InstanceView, prompt: RequestView) -> bool:
    """True if the prompt's KV finds room on the device beside the two largest live models and the KV of all
    that has begun but one: one deferred request may go to host memory."""
    begun = [r for r in view.requests.values() if r.n_computed and not r.is_paused]
    if not begun:
        return True
    room = view.device.arena_bytes - sum(sorted(m.facts.n_bytes for m in view.live_models.values())[-2:])
    need = _kv_bytes(view, prompt) + sum(_kv_bytes(view, request) for request in begun)
    if prompt.is_deferred:
        return need <= DEFERRED_SHARE * room
    return need - max((_kv_bytes(view, r) for r in begun if r.is_deferred), default=0) <= room


def _is_large(view: InstanceView, request: RequestView) -> bool:
    return _kv_bytes(view, request) > LONG * view.device.arena_bytes


def _kv_bytes(view: InstanceView, request: RequestView) -> int:
    return request.n_tokens * view.models[request.request.model].facts.kv.token_bytes
