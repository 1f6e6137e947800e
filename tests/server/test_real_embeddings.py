"""A whole server with a real model for embeddings, asked with OpenAI's client: against transformers' hidden
states."""

from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModel

from tests.server.test_serve import serve_process
from tokenmux.client import Client
from tokenmux.models.catalogue import tiny

pytestmark = pytest.mark.timeout(300)

CONFIG = """\
listen: 127.0.0.1:0
http: 127.0.0.1:0
catalogue: kept
models: {made: made}
device: {arena: 8MiB, host_cache: 32MiB, host_kv: 8MiB, slab: 128KiB, prefill_chunk_tokens: 32}
"""
"""Inputs are several chunks."""

INPUTS = ["a", "Once upon a time there was a pool. " * 6, "b" * 64]


def expected(folder: Path, text: str) -> list[float]:
    """The mean of all hidden states, normalised."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        hidden = model(torch.tensor([tiny.byte_tokenizer().encode(text)])).last_hidden_state[0].double()
    values: list[float] = torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist()
    return values


def test_openais_client_gets_what_transformers_computes(tmp_path: Path) -> None:
    tiny.create("gemma3", tmp_path / "made", dtype=torch.float32)
    tiny.write_pooling(tmp_path / "made", "mean")
    (tmp_path / "pool.yaml").write_text(CONFIG)
    with serve_process(tmp_path) as (process, address), Client(address) as client:
        assert process.stdout is not None
        base_url = process.stdout.readline().split(" at ")[1].strip()
        with openai.OpenAI(base_url=base_url, api_key="none") as theirs:
            answer = theirs.embeddings.create(model="made", input=INPUTS)
        found = [tuple(one.embedding) for one in answer.data]
        for text, values in zip(INPUTS, found, strict=True):
            assert values == pytest.approx(expected(tmp_path / "made", text), rel=1e-5, abs=1e-5)
        assert answer.usage.prompt_tokens == sum(map(len, INPUTS))
        with client.stream("made", "a", max_tokens=400, ignore_end_tokens=True) as others:
            next(iter(others))
            assert list(client.embed("made", INPUTS).values) == found
