"""Decides at registration whether a model can be served, by trying a tiny one of the same kind.

The modelling code is transformers', and its name does not tell what an architecture does with our attention
function: some do not pass the step on, some keep state beside the KV cache, some apply a mask that attention
does not see. The probe shrinks the model's config, fills it with random weights, serves two ragged requests
(a prompt in two cells, then decoding, in blocks that held NaN) and compares with transformers' eager
attention, each request alone. A model that disagrees is refused with the reason.

What shrinking hides, a run for shapes alone shows: sizes that do not fit each other, layers of a kind that
the small model lacks.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tokenmux.core.errors import UnsupportedModel
from tokenmux.core.sizes import round_up
from tokenmux.models.catalogue.config_limits import check_buildable
from tokenmux.models.catalogue.model_facts import kv_shape_of, shape_run_of
from tokenmux.models.foreign_errors import first_line
from tokenmux.models.network.attention import ATTENTION_NAME
from tokenmux.models.network.batch import Segment
from tokenmux.models.network.runner import Runner
from tokenmux.models.network.shape_run import run_for_shapes
from tokenmux.models.network.skeleton import Skeleton, empty_model, state_names
from tokenmux.models.transformers_log import quiet_transformers
from tokenmux.models.weights.image import DTYPE_NAMES
from tokenmux.models.weights.manifest import TENSOR_ALIGNMENT, Manifest, TensorEntry

_GRID = 16
_BLOCK = 8
_PROMPTS = (27, 9)
_WINDOW = 12
_N_DECODED = 5
_N_WORDS = 96
_LONGEST = 64
_TOLERANCE = 2e-3
_STATE_KEYS = ("mamba_", "ssm_", "linear_num_", "lru_width", "conv_L_cache", "state_size", "rwkv_", "xlstm_")


def probe(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Return if models of this config can be served; otherwise raise UnsupportedModel with the reason.
    Takes about a second."""
    what = f"architecture {(config.architectures or [config.model_type])[0]}"
    if config.get_text_config() is not config:
        raise UnsupportedModel(f"{what}: models of more than text are not supported")
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            small = shrunk(config)
            check_buildable(small, trust_remote_code=trust_remote_code)
            _compare(small, trust_remote_code)
            _check_real_sizes(config, small, trust_remote_code)
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UnsupportedModel) else _reason(error)
        if (state := _state_beside_kv(config)) is not None:
            reason = f"it keeps state beside keys and values ({state}), which is not supported yet"
        raise UnsupportedModel(f"{what}: {reason}") from error


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """A small config of the same kind: fewer layers (each kind kept), heads, experts and words; short
    windows.

    Head size and rotary parameters stay, since they belong together, as does every value that the config does
    not let be changed.
    """
    small = deepcopy(config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    n_kv = min(2, getattr(config, "num_key_value_heads", None) or 2)
    grouped = (getattr(config, "num_key_value_heads", None) or 0) not in (0, config.num_attention_heads)
    n_heads = n_kv * (2 if grouped else 1)
    layer_types = getattr(config, "layer_types", None)
    n_layers = min(config.num_hidden_layers, _layers_for_every_kind(layer_types))
    n_groups = min(2, getattr(config, "n_group", None) or 1)
    sizes: dict[str, object] = {
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv,
        "hidden_size": n_heads * head_dim,
        "word_embed_proj_dim": n_heads * head_dim,
        "intermediate_size": 64,
        "ffn_dim": 64,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": n_groups,
        "topk_group": min(n_groups, getattr(config, "topk_group", None) or 1),
        "first_k_dense_replace": min(1, getattr(config, "first_k_dense_replace", None) or 0),
        "vocab_size": _N_WORDS,
        "attention_chunk_size": _WINDOW,
    }
    context = getattr(config, "max_position_embeddings", None) or 0
    # A window as long as the context never applies, and some models have it in a mask that is not passed on.
    if (getattr(config, "sliding_window", None) or context) < context:
        sizes["sliding_window"] = _WINDOW
    if not getattr(config, "rope_parameters", None):
        sizes["max_position_embeddings"] = min(context, _LONGEST)
    for name, value in sizes.items():
        if getattr(config, name, None) is not None:
            _set(small, name, value)
    for name, value in list(vars(small).items()):
        # One value for each layer, such as its kind.
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            _set(small, name, value[:n_layers])
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if not _set(small, name, None):
            _set(small, name, 0)
    return small


def _set(config: PreTrainedConfig, name: str, value: object) -> bool:
    """Set a value of a config; False if the config does not take it (its types are checked, properties may
    lack setters)."""
    try:
        setattr(config, name, value)
    except Exception:  # noqa: BLE001 - configs are foreign code, and raise what they like
        return False
    return True


def _reason(error: Exception) -> str:
    """What an exception from the modelling code means here."""
    text = first_line(error)
    if isinstance(error, KeyError) and ATTENTION_NAME in text:
        return "its attention cannot be replaced"
    return f"it cannot run over paged KV ({text})"


def _state_beside_kv(config: PreTrainedConfig) -> str | None:
    """The config's key for layers whose state is not keys and values: such models cannot be served. None
    if there are none."""
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and (odd := next((k for k in kinds if "attention" not in str(k)), None)):
        return f"layers of type {odd}"
    if isinstance(kinds, list) and any(str(kind).startswith("linear") for kind in kinds):
        return "layers of type linear_attention"
    return next((name for name in vars(config) if name.startswith(_STATE_KEYS)), None)


def _layers_for_every_kind(layer_types: list[str] | None) -> int:
    if not layer_types:
        return 2
    return max(2, 1 + max(layer_types.index(kind) for kind in set(layer_types)))


def _compare(config: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Serve two requests on random weights and compare their logits with eager attention alone."""
    eager: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        deepcopy(config),
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=trust_remote_code,
    ).eval()
    # Fresh weights are small, and then almost any attention gives almost the same logits.
    with torch.no_grad():
        for parameter in eager.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
    weights, manifest = image_in_memory(state_names(eager), torch.float32)
    skeleton = Skeleton(config, manifest, trust_remote_code=trust_remote_code)
    shape = kv_shape_of(skeleton.model, torch.float32, _BLOCK)
    skeleton.bind(weights)
    runner = Runner(skeleton, shape, prefill_chunk_tokens=_GRID)
    n_blocks = shape.blocks_for(max(_PROMPTS) + _N_DECODED)
    arena = torch.full((2 * n_blocks * shape.block_bytes,), 0xFF, dtype=torch.uint8)
    kv = arena.view(torch.float32).view(
        2 * n_blocks, shape.n_layers, 2, shape.n_kv_heads, shape.block_size, shape.head_dim
    )
    tables = [list(range(first, 2 * n_blocks, 2)) for first in (1, 0)]
    # Token 0 may be padding, which some models skip.
    ids = torch.randint(1, config.vocab_size, (2, max(_PROMPTS) + _N_DECODED)).tolist()
    served: list[list[torch.Tensor]] = [[], []]

    def serve(spans: Mapping[int, tuple[int, int]]) -> None:
        segments = [Segment(ids[i][a:b], a, _PROMPTS[i], tables[i]) for i, (a, b) in spans.items()]
        logits = runner.logits(runner.prepare(segments, kv))
        for row, i in enumerate(spans):
            served[i].append(logits[row])

    first, second = _PROMPTS
    serve({0: (0, _GRID)})
    serve({1: (0, second), 0: (_GRID, first)})
    for step in range(_N_DECODED):
        serve({0: (first + step, first + step + 1), 1: (second + step, second + step + 1)})
    unwritten = [n for n in range(shape.n_layers) if kv[tables[0][0], n].isnan().any()]
    if unwritten:
        raise UnsupportedModel(f"layers {unwritten} do not call the attention function")
    for i, ends in enumerate(((_GRID, first), (second,))):
        rows = [*ends, *range(_PROMPTS[i] + 1, _PROMPTS[i] + _N_DECODED + 1)]
        with torch.inference_mode():
            alone = eager(input_ids=torch.tensor([ids[i][: rows[-1]]]), use_cache=False).logits[0]
        expected, got = alone[[row - 1 for row in rows]], torch.stack(served[i])
        error = float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-6))
        if not error < _TOLERANCE:
            raise UnsupportedModel(
                f"its logits differ from transformers' eager attention (relative error {error:.2g})"
            )


def _check_real_sizes(config: PreTrainedConfig, small: PreTrainedConfig, trust_remote_code: bool) -> None:
    """Run the model with its own sizes, for shapes alone. Raises UnsupportedModel."""

    def empty(of: PreTrainedConfig) -> PreTrainedModel:
        return empty_model(of, torch.float32, trust_remote_code=trust_remote_code)

    if shape_run_of(empty(small)) is None:
        return  # it reads values, which says nothing about sizes
    try:
        calls = run_for_shapes(empty(config)).calls
    except Exception as error:
        raise UnsupportedModel(
            f"the sizes in config.json do not fit each other ({first_line(error)}): correct them"
        ) from error
    if silent := sorted(set(range(config.num_hidden_layers)) - calls.keys()):
        raise UnsupportedModel(f"layers {silent[:10]} do not call the attention function")
    for layer, call in calls.items():
        if call.window is not None and call.window < 1:
            raise UnsupportedModel(
                f"layer {layer} has a sliding window of {call.window}: correct config.json"
            )


def manifest_in_memory(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Manifest:
    """The manifest of an image of `tensors`, which may be empty ones (without a file or checksum)."""
    entries: dict[str, TensorEntry] = {}
    offset = 0
    for name, tensor in tensors.items():
        offset = round_up(offset, TENSOR_ALIGNMENT)
        size = tensor.numel() * tensor.element_size()
        entries[name] = TensorEntry(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), offset, size)
        offset += size
    return Manifest("memory", DTYPE_NAMES[dtype], Path(), 0, offset, "", entries)


def image_in_memory(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, Manifest]:
    """An image of `tensors` as a `uint8` tensor, and its manifest."""
    manifest = manifest_in_memory(tensors, dtype)
    image = torch.zeros(manifest.n_bytes, dtype=torch.uint8)
    for name, entry in manifest.tensors.items():
        raw = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8)
        image[entry.offset : entry.offset + entry.n_bytes] = raw
    return image, manifest
