"""GGUF files changed at random: the model that was written, or a refusal with a reason, and never anything
else.

Two kinds: damage of bytes (cut anywhere, bytes of the header flipped), and files that are well formed but say
something else (keys added, removed and changed, tensors dropped, added and reshaped).
"""

import io
import math
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFValueType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.models.catalogue.gguf import gguf_files as files
from tests.models.catalogue.gguf.test_gguf import LINEAR, LLAMA3, logits, model_from
from tokenmux.core.errors import BadCheckpoint, UnsupportedModel
from tokenmux.models.catalogue.gguf.gguf_checkpoint import GgufCheckpoint

REFUSALS = (BadCheckpoint, UnsupportedModel)
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "head_dim": 64},
    "mistral": {"sliding_window": 24, "rope_parameters": LINEAR},
    "qwen2": {},
    "gemma2": {"head_dim": 32, "sliding_window": 24},
    "phi3": {"sliding_window": 24},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "norm_topk_prob": True,
    },
    "gpt_oss": {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24},
}
# What a file says by leaving it out: with these gone it describes another model, and a complete one.
SAYS_SOMETHING_BY_ABSENCE = (
    "rope_freqs.weight",
    "attention.sliding_window",
    "rope.scaling.type",  # a factor alone means linear
    "attn_logit_softcapping",  # as Gemma 2's 50 and 30, which is what it is
    "output.weight",  # tied
)
NEUTRAL = (0, 1, "none")
"""Values of a key that is new to the file which say the same as its absence."""
SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[files.Contents, torch.Tensor]]:
    """Contents of a file of each model, and the logits it must give."""
    made = {}
    for model_type, sizes in MODELS.items():
        model = files.model_of(model_type, **sizes)
        made[model_type] = (files.contents_of(model), logits(model))
    return made


@pytest.fixture(scope="module")
def bytes_of_a_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    contents = files.contents_of(files.model_of("qwen2"))
    return contents.write(tmp_path_factory.mktemp("whole") / "model.gguf").read_bytes()


def opened(file: Path) -> GgufCheckpoint | str:
    """What was read, or why it was not; anything but a refusal fails the test."""
    try:
        return GgufCheckpoint.open(file)
    except REFUSALS as refusal:
        said = str(refusal)
    assert str(file) in said
    return said


def test_a_pointer_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in str(opened(file))


@SETTINGS
@given(share=st.floats(0, 1, exclude_max=True))
@example(share=0.0)
def test_a_file_that_is_cut_off_is_refused(share: float, bytes_of_a_file: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes_of_a_file[: int(share * len(bytes_of_a_file))])
    assert isinstance(said := opened(file), str)
    assert "cut off" in said or "not a GGUF file" in said or "cannot be read" in said


@SETTINGS
@given(
    at=st.one_of(st.integers(0, 700), st.integers(0, 12_000)),
    value=st.integers(0, 255),
    length=st.integers(1, 8),
)
def test_damaged_headers_cost_neither_time_nor_memory(
    at: int, value: int, length: int, bytes_of_a_file: bytes, tmp_path: Path
) -> None:
    damaged = bytearray(bytes_of_a_file)
    damaged[at : at + length] = bytes([value]) * length
    file = tmp_path / "model.gguf"
    file.write_bytes(damaged)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    opened(file)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def changes(contents: files.Contents) -> st.SearchStrategy[tuple[str, str, Any]]:
    """A key or a tensor of the file, and what happens to it."""
    ours = [key for key in contents.keys if not key.startswith("tokenizer.chat")]
    keys = st.sampled_from(ours)
    values = st.sampled_from(
        [
            *(0, 1, 2, 3, 16, 77, 24, 1000, 1 << 20, (1 << 31) - 1, (1 << 32) - 1),
            *(0.0, 0.5, 1.0, -1.0, 8.0, 1e30, math.inf, math.nan, True, False),
            *("none", "yarn", "linear", "longrope", "nonesuch", ""),
        ]
    )
    invented = st.sampled_from(
        [
            f"{contents.architecture}.{name}"
            for name in (
                "attention.clamp_kqv",
                "attention.scale",
                "attention.sliding_window_pattern",
                "attention.temperature_scale",
                "logit_scale",
                "residual_scale",
                "expert_weights_scale",
                "expert_group_count",
                "rope.scaling.factor",
                "rope.scaling.attn_factor",
                "rope.scaling.yarn_beta_fast",
                "rope.dimension_sections",
                "rope.freq_base_swa",
                "use_parallel_residual",
                "attention.key_length_swa",
            )
        ]
    )
    tensors = st.sampled_from(sorted(contents.tensors))
    return st.one_of(
        st.tuples(st.just("remove key"), keys, st.none()),
        st.tuples(st.just("set key"), st.one_of(keys, invented), values),
        st.tuples(st.just("drop tensor"), tensors, st.none()),
        st.tuples(
            st.just("add tensor"),
            st.sampled_from(["blk.0.attn_q.bias", "blk.1.new", "rope_x.weight"]),
            st.none(),
        ),
        st.tuples(st.just("reshape tensor"), tensors, st.none()),
    )


def typed(value: Any) -> tuple[Any, GGUFValueType]:
    match value:
        case bool():
            return value, files.FLAG
        case int():
            return value, files.U32
        case float():
            return value, files.F32
    return value, files.TEXT


@SETTINGS
@given(data=st.data())
@pytest.mark.parametrize("model_type", MODELS)
def test_a_changed_file_gives_the_same_model_or_is_refused_with_the_name(
    model_type: str,
    written: dict[str, tuple[files.Contents, torch.Tensor]],
    data: st.DataObject,
    tmp_path: Path,
) -> None:
    contents, expected = written[model_type]
    what, name, value = data.draw(changes(contents))
    changed = files.Contents(contents.architecture, dict(contents.keys), dict(contents.tensors))
    match what:
        case "remove key":
            del changed.keys[name]
        case "set key":
            changed.keys[name] = typed(value)
        case "drop tensor":
            del changed.tensors[name]
        case "add tensor":
            changed.tensors[name] = np.ones(32, np.float32)
        case "reshape tensor":
            changed.tensors[name] = np.concatenate([changed.tensors[name]] * 2)
    found = opened(changed.write(tmp_path / "model.gguf"))
    if isinstance(found, str):
        return
    assert what != "add tensor", f"{name} was passed over"
    if what == "set key":
        before = contents.keys.get(name, (None, None))[0]
        # One that is used says what model it is, and `test_gguf.py` says that it is the right one.
        assert stated(name) or value == before or (before is None and value in NEUTRAL), (
            f"{name} was passed over"
        )
        return
    if not name.endswith(SAYS_SOMETHING_BY_ABSENCE):
        torch.testing.assert_close(logits(model_from(found)), expected, rtol=1e-4, atol=1e-4)


def stated(key: str) -> bool:
    """Whether any value of the key is one that a model can have and that is taken into its config."""
    return key.endswith(
        (
            "rope.freq_base",
            "rope.freq_base_swa",
            "epsilon",
            "sliding_window",
            "sliding_window_pattern",
            "softcapping",
            "rope.scaling.factor",
            "rope.scaling.type",
            "rope.scaling.yarn_beta_fast",
            "expert_used_count",
            "original_context_length",
            "rope.dimension_count",
            "context_length",
            "_token_id",
            "add_bos_token",
        )
    )


def test_a_model_of_which_much_is_changed_is_never_built(bytes_of_a_file: bytes, tmp_path: Path) -> None:
    """Many bytes of the header at once, a few hundred times: no exception but refusals."""
    random = np.random.default_rng(0)
    file = tmp_path / "model.gguf"
    for _ in range(300):
        damaged = np.frombuffer(bytes_of_a_file, np.uint8).copy()
        places = random.integers(4, 9_000, random.integers(1, 30))
        damaged[places] = random.integers(0, 256, len(places))
        file.write_bytes(io.BytesIO(damaged.tobytes()).getvalue())
        opened(file)
