"""A whole server with real models: what a request asks of its draws holds while other models take the device
and while executors and nodes are killed in its middle."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.test_serve import executors_of, node_of, real_server
from tokenmux.client import Client, Delta, PromptLogprobs, TokenLogprobs
from tokenmux.core.sampling import choice_seed

pytestmark = pytest.mark.timeout(300)

OPTIONS = {
    "max_tokens": 100,
    "temperature": 1.0,
    "seed": 5,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.4,
    "presence_penalty": 0.2,
    "logit_bias": {101: 2.0, 32: -100.0},
    "forbidden_token_ids": [10],
    "bad_words": ["ab", "z"],
    "logprobs": 3,
    "ignore_end_tokens": True,
}
DEVICE = """\
device: {arena: 1536KiB, host_cache: 32MiB, host_kv: 8MiB, slab: 128KiB, prefill_chunk_tokens: 32}
"""
"""Its arena holds one of the two models."""

Output = tuple[tuple[int, ...], tuple[TokenLogprobs, ...]]


def stream(client: Client, model: str, after_ten: Callable[[], object] | None = None) -> Output:
    """Tokens and log-probabilities of an answer; `after_ten` is called when ten of them have come."""
    tokens: list[int] = []
    told: list[TokenLogprobs] = []
    for event in client.stream(model, "Once upon a time", **OPTIONS):  # type: ignore[arg-type]
        if isinstance(event, Delta):
            before = len(tokens)
            tokens += event.token_ids
            told += event.logprobs
            if after_ten is not None and before < 10 <= len(tokens):
                after_ten()
    return tuple(tokens), tuple(told)


def test_rules_and_log_probabilities_survive_swaps_and_kills(tmp_path: Path) -> None:
    with real_server(tmp_path, device=DEVICE) as (process, address), Client(address) as client:
        alone = {model: stream(client, model) for model in ("llama", "gpt2")}
        for tokens, told in alone.values():
            assert len(tokens) == len(told) == 100
            assert all(len(one.top) == 3 for one in told)
            assert 10 not in tokens
        whole = client.generate("llama", "Once upon a time", **OPTIONS)  # type: ignore[arg-type]
        assert (whole.token_ids, whole.logprobs) == alone["llama"]

        found: dict[str, Output] = {}

        def beside(model: str) -> threading.Thread:
            thread = threading.Thread(target=lambda: found.update({model: stream(client, model)}))
            thread.start()
            return thread

        other = beside("gpt2")
        assert stream(client, "llama") == alone["llama"]
        other.join()
        assert found["gpt2"] == alone["gpt2"]
        assert sum(model.n_swaps for model in client.pool.status().models) > 2

        def kill_executors() -> None:
            for executor in executors_of(process.pid):
                os.kill(executor, signal.SIGKILL)

        def kill_node() -> None:
            os.kill(node_of(process.pid), signal.SIGKILL)

        assert stream(client, "llama", kill_executors) == alone["llama"]
        assert stream(client, "llama", kill_node) == alone["llama"]


@pytest.mark.nightly
def test_choices_and_what_is_told_of_a_prompt_survive_kills(tmp_path: Path) -> None:
    """Each choice is what a request with its seed draws, and the prompt is told of once."""
    prompt = "Once upon a time " * 12
    asked = {"max_tokens": 40, "temperature": 1.0, "ignore_end_tokens": True, "logprobs": 1}
    with real_server(tmp_path, device=DEVICE) as (process, address), Client(address) as client:
        alone = [
            client.generate("llama", prompt, seed=choice_seed(5, i), **asked)  # type: ignore[arg-type]
            for i in range(3)
        ]
        assert len({answer.token_ids for answer in alone}) == 3
        told = client.generate("llama", prompt, prompt_logprobs=2, max_tokens=1).prompt_logprobs
        assert told is not None
        assert told.logprobs[0] is None
        assert len(told.logprobs) == len(told.token_ids) == alone[0].prompt.n_prompt_tokens

        def streamed(kill: Callable[[], object] | None = None) -> None:
            tokens: list[list[int]] = [[], [], []]
            of_prompt: list[TokenLogprobs | None] = []
            for event in client.stream(
                "llama", prompt, seed=5, n=3, prompt_logprobs=2, **asked  # type: ignore[arg-type]
            ):  # fmt: skip
                match event:
                    case PromptLogprobs(index, _, values):
                        assert index == len(of_prompt)
                        of_prompt += values
                    case Delta():
                        tokens[event.choice] += event.token_ids
                        if kill is not None and len(tokens[1]) >= 10:
                            kill()
                            kill = None
            assert tuple(of_prompt) == told.logprobs
            assert [tuple(one) for one in tokens] == [answer.token_ids for answer in alone]

        streamed()
        streamed(lambda: [os.kill(executor, signal.SIGKILL) for executor in executors_of(process.pid)])
        streamed(lambda: os.kill(node_of(process.pid), signal.SIGKILL))
