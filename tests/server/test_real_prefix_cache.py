"""A whole server with its prefix cache on: a prompt that was seen is not computed again, and its client is
told so, also if the node is killed in the middle."""

import os
import signal
from pathlib import Path

import pytest

from tests.server.test_serve import node_of, real_server
from tokenmux.client import Client, Delta, Finish

pytestmark = pytest.mark.timeout(300)

PROMPT = tuple(range(200))
SEEN = 192
"""Its whole cells."""
DEVICE = "device: {arena: 8MiB, host_cache: 32MiB, host_kv: 8MiB, slab: 128KiB, prefill_chunk_tokens: 32}\n"
MORE = "prefix_cache: {enabled: true}\n"


@pytest.mark.nightly
def test_a_prompt_that_was_seen_is_not_computed_again(tmp_path: Path) -> None:
    with (
        real_server(tmp_path, MORE, DEVICE, families=("llama",)) as (process, address),
        Client(address) as client,
    ):
        options = {"max_tokens": 60, "temperature": 1.0, "seed": 5, "ignore_end_tokens": True}
        first, again, salted, without = (
            client.generate("llama", PROMPT, **options, **cache)  # type: ignore[arg-type]
            for cache in ({}, {}, {"cache_salt": "pepper"}, {"prefix_cache": False})
        )
        told = [answer.usage.n_cached_prompt_tokens for answer in (first, again, salted, without)]
        assert told == [0, SEEN, 0, 0]
        assert {answer.token_ids for answer in (again, salted, without)} == {first.token_ids}
        tokens: list[int] = []
        for event in client.stream("llama", PROMPT, **options):  # type: ignore[arg-type]
            match event:
                case Delta():
                    if len(tokens) < 10 <= len(tokens) + len(event.token_ids):
                        os.kill(node_of(process.pid), signal.SIGKILL)
                    tokens += event.token_ids
                case Finish():
                    assert event.n_cached_prompt_tokens == SEEN
        assert tuple(tokens) == first.token_ids
