"""How much of one instance a model takes, as far as that model alone is concerned."""

from tokenmux.core.cost import StepWork
from tokenmux.core.request import Request
from tokenmux.scheduler.policy.loading import HEADROOM
from tokenmux.scheduler.policy.pool.pool_policy import PoolView


def crowd(pool: PoolView, index: int, request: Request) -> float:
    """What the request's model would take of one instance: share of a TTFT for waiting prompts plus share
    of a TPOT for steps, or share of memory for KV, whichever is larger. That memory is the room beside two
    sets of the model's weights (beside one set, if two do not fit)."""
    instance = pool.instances[index]
    model = instance.live_models.get(request.model)
    if model is None:
        return 0.0
    n_prompt, n_decoding = request.n_prompt, len(model.decoding)
    service = request.service.beside(instance.service)
    prefill = StepWork(prefill_tokens=n_prompt, prefill_pairs=n_prompt**2 // 2)
    decode = StepWork(decode_rows=n_decoding, context_tokens=n_decoding * n_prompt)
    waiting_s = len(model.waiting) * instance.cost.step_s(model.facts, prefill)
    step_s = instance.cost.step_s(model.facts, decode) if n_decoding else 0.0
    kv_bytes = (model.n_live + 1) * n_prompt * model.facts.kv.token_bytes
    arena_bytes, weights = instance.device.arena_bytes, 2 * model.facts.n_bytes
    if weights > (1 - HEADROOM) * arena_bytes:
        weights = model.facts.n_bytes
    room = max(1, arena_bytes - weights)
    return max(waiting_s / service.ttft_s + step_s / service.tpot_s, kv_bytes / room)
