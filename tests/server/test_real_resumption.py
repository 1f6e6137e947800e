"""A whole server that is killed in mid-stream costs no token: its successor goes on where the client is."""

from pathlib import Path

import pytest

from tests.server.test_serve import real_server, serve_process
from tokenmux.client import Client, Delta, Finish, GenerateOptions, GenerationEvent, PromptInfo

PROMPT = "Once upon a time"
OPTIONS: GenerateOptions = {
    "max_tokens": 200,
    "temperature": 1.0,
    "frequency_penalty": 0.5,
    "logit_bias": {5: 1.0},
    "logprobs": 1,
    "echo": True,
    "ignore_end_tokens": True,
}
KILLED_AFTER = 20


@pytest.mark.timeout(300)
def test_a_server_that_is_killed_costs_no_token(tmp_path: Path) -> None:
    events: list[GenerationEvent] = []
    with real_server(tmp_path, families=("llama",)) as (process, address), Client(address) as client:
        stream = iter(client.stream("llama", PROMPT, **OPTIONS))
        n_tokens = 0
        while n_tokens < KILLED_AFTER:
            events.append(event := next(stream))
            n_tokens += len(event.token_ids) if isinstance(event, Delta) else 0
        process.kill()
        process.wait()
        config = tmp_path / "pool.yaml"
        config.write_text(config.read_text().replace("listen: 127.0.0.1:0", f"listen: {address}"))
        with serve_process(tmp_path):
            events += stream
            info, end = events[0], events[-1]
            assert isinstance(info, PromptInfo)
            assert isinstance(end, Finish)
            alone = client.generate("llama", PROMPT, seed=info.seed, **OPTIONS)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert tuple(token for delta in deltas for token in delta.token_ids) == alone.token_ids
    assert "".join(delta.text for delta in deltas) == alone.text
    assert tuple(told for delta in deltas for told in delta.logprobs) == alone.logprobs
    assert 0 < end.n_resumed_tokens < end.n_completion_tokens == OPTIONS["max_tokens"]
    assert sum(isinstance(event, PromptInfo | Finish) for event in events) == 2
