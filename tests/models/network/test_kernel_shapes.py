"""What is compiled ahead of time is what a model's steps look up: on a device that is not there, nothing
is left to compile."""

from dataclasses import replace

import pytest
import torch
import triton
from transformers import AutoConfig

from tokenmux.core.errors import UnsupportedModel
from tokenmux.kernels import warm
from tokenmux.kernels.absent import absent_device
from tokenmux.kernels.tiles import step_tiles
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.model_facts import kv_shape
from tokenmux.models.catalogue.probe import image_in_memory
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.kernel_shapes import model_shapes
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.skeleton import Skeleton, empty_model, state_names

BF16 = torch.bfloat16


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_every_family_tells_what_its_layers_ask_for(family: str) -> None:
    config = tiny.FAMILIES[family]()
    (shape,) = model_shapes(config, BF16, 16)
    expected = warm.ModelShape(
        dtype=BF16,
        head_dim=kv_shape(config, BF16).head_dim,
        block_size=16,
        group=1 if family in ("gpt2", "opt") else 2,
        vocabulary=tiny.VOCAB_SIZE,
        logits=BF16,
        softcap=family == "gemma2",
        sinks=BF16 if family == "gpt_oss" else None,
    )
    assert shape == expected


def test_what_the_kernels_cannot_serve_is_refused() -> None:
    sizes = {"hidden_size": 80, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    with pytest.raises(UnsupportedModel, match="heads of 40 numbers"):
        model_shapes(AutoConfig.for_model("llama", **sizes, head_dim=40), BF16, 16)
    with pytest.raises(UnsupportedModel, match="mamba: its layers do not call"):
        model_shapes(AutoConfig.for_model("mamba", num_hidden_layers=1), BF16, 16)


def test_a_step_finds_all_its_kernels_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    config = tiny.FAMILIES["gpt_oss"]()
    heard: list[tuple[int, int]] = []
    warmed = warm.warm(90, model_shapes(config, BF16, 16), lambda done, total: heard.append((done, total)))
    assert (warmed.forms, warmed.compiled, warmed.cache) == (13, 13, tmp_path)
    assert warmed.cache_bytes > 10_000
    assert heard == [(done, 13) for done in range(14)]
    again = warm.warm(90, model_shapes(config, BF16, 16), lambda *_: None)
    assert replace(again, seconds=warmed.seconds, compiled=13) == warmed
    assert again.compiled == 0

    hits: list[bool] = []
    monkeypatch.setattr(
        triton.knobs.compilation, "listener", lambda *, cache_hit, **_: hits.append(cache_hit)
    )
    with torch.no_grad():
        empty = empty_model(config, BF16)
        weights, manifest = image_in_memory(
            {name: torch.zeros(t.shape, dtype=BF16) for name, t in state_names(empty).items()}, BF16
        )
    shape = kv_shape(config, BF16, 16)
    runner = Runner(Skeleton(config, manifest), shape, prefill_chunk_tokens=128, tiles=step_tiles(90, 32))
    runner.bind(weights)
    kv = torch.zeros(32, shape.n_layers, 2, shape.n_kv_heads, 16, shape.head_dim, dtype=BF16)
    steps = (
        [Segment([1] * 100, 0, 100, list(range(8)), draw=False), Segment([1] * 5, 0, 5, [9])],
        [Segment([1], 6, 5, [9]), Segment([1, 2], 30, 20, [10, 11, 12])],
    )
    with absent_device(90) as device:
        for segments in steps:
            runner.step(runner.prepare(segments, kv))
    assert len(hits) == 8
    assert all(hits)
    # Two layers a pass and three passes, of which the first has prompt rows only.
    assert device.launched.count("attend_chunk") == 4
    assert device.launched.count("attend_split") == device.launched.count("merge_splits") == 2
    assert device.launched.count("append") == 6
