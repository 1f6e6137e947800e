"""What it saves to place a request where KV of its prompt's beginning is."""

from tokenmux.core.cost import StepWork
from tokenmux.core.plan import Channel
from tokenmux.core.request import Request
from tokenmux.scheduler.policy.pool.pool_policy import PoolView


def saved_share(pool: PoolView, index: int, request: Request) -> float:
    """The time of prefill that the request is spared on this instance, less that of paging in what only host
    memory has, as a share of its TTFT. 0 for a request without keys."""
    if request.prefix is None:
        return 0.0
    instance = pool.instances[index]
    n_known, n_away = instance.known_prefix(request)
    if not n_known:
        return 0.0
    facts, cost, n_prompt = pool.facts(request.model), instance.cost, request.n_prompt
    whole = StepWork(prefill_tokens=n_prompt, prefill_pairs=n_prompt**2 // 2)
    rest = StepWork(prefill_tokens=n_prompt - n_known, prefill_pairs=(n_prompt**2 - n_known**2) // 2)
    saved_s = cost.step_s(facts, whole) - cost.step_s(facts, rest)
    if n_away:
        saved_s -= cost.copy_s(Channel.COPY_IN, n_away * facts.kv.token_bytes)
    return max(0.0, saved_s) / request.service.beside(instance.service).ttft_s
