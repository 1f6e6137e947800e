"""Turns the beginning of a request's prompt into keys, so that the scheduler, which sees no content, finds KV
of the same beginning."""

from dataclasses import replace

from tokenmux.core.prefix import Prefix, prefix_keys, prefix_seed
from tokenmux.core.request import Request
from tokenmux.messages.commands import Submit
from tokenmux.messages.setups import NodeSetup


class PromptPrefixes:
    """Makes keys if the pool has a prefix cache.

    There are none where paging rounds KV: what a request was given would then depend on whether its giver was
    paged.
    """

    def __init__(self, setup: NodeSetup) -> None:
        exact = all(device.paged_kv == "exact" for device in setup.devices)
        self._cell_tokens = setup.devices[0].facts.cell_tokens if setup.prefix_cache and exact else None
        self._joins_tenants = setup.joins_tenants

    def request_of(self, submit: Submit) -> Request:
        """The request with the keys of its prompt, unless it does without the cache. One that is told of its
        prompt has to compute all of it, unless the hidden state at its end is enough."""
        request, cell = submit.request, self._cell_tokens
        if cell is None or len(submit.prompt) < cell or not submit.prefix_cache:
            return request
        salts = () if self._joins_tenants else (request.tenant,)
        if submit.cache_salt is not None:
            salts = (*salts, submit.cache_salt)
        keys = prefix_keys(prefix_seed(request.model, salts), submit.prompt, cell)
        reads = submit.n_prompt_likeliest is None and submit.pooling in (None, "last")
        return replace(request, prefix=Prefix(request.model, cell, keys, reads=reads))
